"""Whether something fails at the moment: its beginning and its end are logged, and not each call that it fails."""


class Outage:
    """Counts failures from the first one to the next success. Its owner logs both ends."""

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures = 0
        """How many there were since the last success; a success with none before it needs nothing of an outage."""

    def begins(self) -> bool:
        """Count a failure, and return whether it is the first one."""
        self.failures += 1
        return self.failures == 1

    def end(self) -> int:
        """End with a success, and return how many failures there were."""
        failures, self.failures = self.failures, 0
        return failures
