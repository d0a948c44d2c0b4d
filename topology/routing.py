"""How a topic exchange matches: words between dots, `*` is one word, `#` any number of words, none included."""

HASH, STAR = "#", "*"

Words = tuple[str, ...]


def matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic exchange passes this key on over a binding with this pattern."""
    return _meet(_words(pattern), _words(routing_key), key_is_literal=True)


def overlap(pattern: str, other: str) -> bool:
    """Whether any routing key exists that both patterns match."""
    return _meet(_words(pattern), _words(other), key_is_literal=False)


def _words(text: str) -> Words:
    return tuple(text.split(".")) if text else ()


def _meet(left: Words, right: Words, *, key_is_literal: bool) -> bool:
    """Whether some key fits both. With `key_is_literal` the right side is a key, in which `*` and `#` are ordinary words."""
    if left and left[0] == HASH:
        return _meet(left[1:], right, key_is_literal=key_is_literal) or (
            bool(right) and _meet(left, right[1:], key_is_literal=key_is_literal)
        )
    if right and right[0] == HASH and not key_is_literal:
        return _meet(left, right[1:], key_is_literal=False) or (
            bool(left) and _meet(left[1:], right, key_is_literal=False)
        )
    if not left or not right:
        return not left and not right
    same = left[0] == right[0] or left[0] == STAR or (right[0] == STAR and not key_is_literal)
    return same and _meet(left[1:], right[1:], key_is_literal=key_is_literal)
