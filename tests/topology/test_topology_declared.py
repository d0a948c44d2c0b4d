import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.declared import (
    DEAD_LETTERS,
    EVENTS,
    ROUTER_QUEUE,
    UNHEARD,
    UNROUTABLE,
    VendorRoutes,
    command_key,
    delivery_key,
    dlq,
    inbound_queue,
    lands_in,
    outbound_queue,
    topology,
)
from topology.routing import matches, overlap

VENDORS = (
    VendorRoutes("beds24", ("beds24.#",)),
    VendorRoutes("turno", ("turno.job.*", "turno.status_webhook")),
    VendorRoutes("handy", ()),
)
ACTIONS = ("turno.create_job", "handy.emergency_request", "notify_cleaner")

words = st.sampled_from(["a", "b", "pms", "core", "deliver", "turno"])
keys = st.lists(words, max_size=5).map(".".join)
patterns = st.lists(words | st.sampled_from(["*", "#"]), min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("beds24.#", "beds24.booking.modified", True),
        ("beds24.#", "beds24", True),
        ("beds24.#", "beds24x.booking", False),
        ("beds24.*", "beds24.booking", True),
        ("beds24.*", "beds24.booking.modified", False),
        ("#", "", True),
        ("*", "", False),
        ("#.failed", "core.command.failed", True),
        ("a.#.b.*", "a.b.b.c", True),
        ("a.*", "a.#", True),
        ("a.b", "a.#", False),
    ],
)
def test_matching_follows_the_broker(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@given(patterns, patterns, keys)
def test_a_key_that_two_patterns_match_means_that_they_overlap(one: str, other: str, key: str) -> None:
    assert overlap(one, other) is overlap(other, one)
    if matches(one, key) and matches(other, key):
        assert overlap(one, other)


@given(patterns, patterns)
def test_patterns_that_overlap_have_a_key_in_common(one: str, other: str) -> None:
    """Shown by building one: wildcards of each filled from the other."""
    if overlap(one, other):
        assert any(matches(one, key) and matches(other, key) for key in _candidates(one, other))


def _candidates(one: str, other: str) -> list[str]:
    """Shuffles of both patterns' words, `*` filled with a word: long enough to hold any shortest common key."""
    found: list[str] = []

    def walk(left: list[str], right: list[str], key: list[str]) -> None:
        if not left and not right:
            found.append(".".join(key))
            return
        if left and left[0] == "#":
            walk(left[1:], right, key)
        if right and right[0] == "#":
            walk(left, right[1:], key)
        heads = {side[0] for side in (left, right) if side and side[0] not in "*#"} or {"x"}
        for word in heads if left or right else ():
            rests = [_rests(side, word) for side in (left, right)]
            for a in rests[0]:
                for b in rests[1]:
                    if len(a) + len(b) < len(left) + len(right):
                        walk(a, b, [*key, word])

    walk(one.split("."), other.split("."), [])
    return found


def _rests(side: list[str], word: str) -> list[list[str]]:
    if side and side[0] == "#":
        return [side]
    return [side[1:]] if side and side[0] in {word, "*"} else []


vendors = st.lists(
    st.builds(
        VendorRoutes,
        st.sampled_from(["a", "b", "turno", "mews"]),
        st.lists(patterns, max_size=2).map(tuple),
    ),
    max_size=3,
)


@given(vendors, st.lists(patterns, max_size=2), keys)
def test_no_key_lands_in_two_work_queues(some: list[VendorRoutes], actions: list[str], key: str) -> None:
    """What would let one is refused; so nothing declared can deliver one event to an inbound queue and to the router."""
    try:
        declared = topology(some, actions)
    except ValueError:
        return
    for routing_key in (key, delivery_key("a", key), f"pms.{key}"):
        assert len(lands_in(declared, routing_key)) == expected(routing_key)


def expected(key: str) -> int:
    """Results alone may land nowhere."""
    return 0 if key.split(".", maxsplit=1)[0] == "core" else 1


@given(st.sampled_from([vendor.name for vendor in VENDORS]), keys)
def test_of_the_real_shape_no_key_lands_twice(vendor: str, rest: str) -> None:
    declared = topology(VENDORS, ACTIONS)
    for key in (f"{vendor}.{rest}", f"pms.{rest}", rest):
        assert len(lands_in(declared, key)) == expected(key)
    for event_type in (rest, f"{vendor}.{rest}", f"pms.{rest}"):
        assert lands_in(declared, delivery_key(vendor, event_type)) == {outbound_queue(vendor)}
        assert lands_in(declared, command_key(event_type)) == {ROUTER_QUEUE}


@pytest.mark.parametrize(
    ("key", "queue"),
    [
        ("beds24.booking.modified", "beds24.inbound"),
        ("turno.job.completed", "turno.inbound"),
        ("turno.create_job", ROUTER_QUEUE),
        ("notify_cleaner", ROUTER_QUEUE),
        ("pms.booking.create", ROUTER_QUEUE),
        ("deliver.handy.handy.emergency_request", "handy.outbound"),
        ("deliver.nobody.pms.booking.create", UNROUTABLE),
        ("turno.unheard_of", UNROUTABLE),
        ("", UNROUTABLE),
    ],
)
def test_where_keys_land(key: str, queue: str) -> None:
    assert lands_in(topology(VENDORS, ACTIONS), key) == {queue}


def test_results_land_nowhere_and_are_not_unroutable() -> None:
    assert lands_in(topology(VENDORS, ACTIONS), "core.reservation.upserted") == set()


@pytest.mark.parametrize("key", ["pms.dlq", "beds24.dlq", "turno.dlq", "handy.dlq"])
def test_dead_letters_reach_their_queue(key: str) -> None:
    assert lands_in(topology(VENDORS, ACTIONS), key, DEAD_LETTERS) == {key}


@pytest.mark.parametrize(
    ("some", "actions"),
    [
        ([VendorRoutes("turno", ("turno.#",))], ["turno.create_job"]),
        ([VendorRoutes("hostpms", ("pms.booking_webhook",))], []),
        ([VendorRoutes("a", ("a.#",)), VendorRoutes("b", ("*.booking",))], []),
        ([VendorRoutes("a", ("deliver.a.x",))], []),
        ([VendorRoutes("a", ("core.#",))], []),
        ([VendorRoutes("a", ())], ["core.something"]),
        ([VendorRoutes("a", ()), VendorRoutes("a", ("a.#",))], []),
        ([VendorRoutes("pms", ())], []),
        ([VendorRoutes("a.b", ())], []),
        ([VendorRoutes("", ())], []),
    ],
)
def test_what_would_collide_is_refused(some: list[VendorRoutes], actions: list[str]) -> None:
    with pytest.raises(ValueError, match=r"vendor|routing key"):
        topology(some, actions)


def test_arguments_are_those_of_the_rules() -> None:
    """messaging.md §2, word by word."""
    declared = topology(VENDORS, ACTIONS)
    queues = {queue.name: queue.arguments for queue in declared.queues}
    assert set(queues) == {
        *(inbound_queue(name) for name in ("beds24", "turno")),
        *(outbound_queue(vendor.name) for vendor in VENDORS),
        *(dlq(vendor.name) for vendor in VENDORS),
        "pms.outbound",
        "pms.dlq",
        "pms.unroutable",
    }
    for name, dead in (("beds24.inbound", "beds24.dlq"), ("handy.outbound", "handy.dlq"), ("pms.outbound", "pms.dlq")):
        router = {"x-single-active-consumer": True} if name == "pms.outbound" else {}
        assert queues[name] == {
            **router,
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": "pms.dlx",
            "x-dead-letter-routing-key": dead,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
    for name in ("beds24.dlq", "pms.dlq", "pms.unroutable"):
        assert queues[name] == {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    assert {(exchange.name, exchange.type, *exchange.arguments.items()) for exchange in declared.exchanges} == {
        (EVENTS, "topic", ("alternate-exchange", UNROUTABLE)),
        (DEAD_LETTERS, "direct"),
        (UNROUTABLE, "fanout"),
        (UNHEARD, "fanout"),
    }


def test_equal_input_gives_an_equal_value_whatever_its_order() -> None:
    assert topology(VENDORS, ACTIONS) == topology(reversed(VENDORS), [*ACTIONS, ACTIONS[0]])
    assert hash(topology(VENDORS, ACTIONS)) == hash(topology(VENDORS, ACTIONS))
