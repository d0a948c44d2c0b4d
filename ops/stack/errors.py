"""What the local stack raises."""


class StackError(Exception):
    """The stack cannot be started or reached; the text says what is missing and what to run."""
