"""How much of a stream is parsed at a time: less while it has many short events, which all take time."""

STEP_BYTES = 65_536
"""How much is parsed at most before other calls have a turn, in bytes."""
LEAST_STEP_BYTES = 4_096
"""How much of many short events."""
MANY_UNITS = 24
"""How many events and runs in one step are many."""


class Steps:
    """The steps of one stream; `size_bytes` is that of the next one."""

    def __init__(self) -> None:
        self.size_bytes = LEAST_STEP_BYTES

    def is_long(self, chunk_bytes: int, units: int) -> bool:
        """Note what a step had; return whether others should have a turn after it."""
        if units > MANY_UNITS:
            self.size_bytes = LEAST_STEP_BYTES
            return True
        if chunk_bytes == self.size_bytes < STEP_BYTES:
            self.size_bytes *= 2
        return False
