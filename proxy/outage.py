"""Counts the failures of an outage, so that its beginning and end are logged instead of each failed call."""


class Outage:
    """Counts failures from the first one to the next success. Its owner logs both ends."""

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures = 0
        """The number of failures since the last success; 0 while there is no outage."""

    def begins(self) -> bool:
        """Count a failure; return whether it is the first one."""
        self.failures += 1
        return self.failures == 1

    def end(self) -> int:
        """Record a success; return how many failures there were."""
        failures, self.failures = self.failures, 0
        return failures
