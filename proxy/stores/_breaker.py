"""Keeps commands from a server that does not answer: they fail at once instead of waiting for it.

closed     every command is sent; FAULTS in a row open it
open       none is sent, for PAUSE_S at first and for twice as long each time, up to LONGEST_PAUSE_S
half open  one command is sent to try; its outcome closes or opens it
"""

import structlog

log = structlog.get_logger()

PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0


class StoreBreaker:
    """The state of one server. Times are those of a clock that only moves forward, in seconds."""

    def __init__(self, max_faults: int, address: str = "") -> None:
        """`max_faults` is how many commands in a row fail before it opens: one slow answer is no outage.

        `address` is the server's, as logs name it.
        """
        self._address = address
        self._max_faults = max_faults
        self._faults = 0
        self._opened_until: float | None = None
        self._pause_s = PAUSE_S
        self._is_trying = False
        self.is_calm = True
        """Whether it is closed and the last command was answered: then nothing has to be noted of one that is, too."""

    def begin(self, now: float) -> bool:
        """Return whether a command may be sent; each that may be is followed by one of the methods below."""
        if self._opened_until is None:
            return True
        if now < self._opened_until or self._is_trying:
            return False
        self._is_trying = True
        return True

    def succeed(self) -> None:
        """Note a command that was answered, if only with an error."""
        if self._opened_until is not None:
            log.info("store.resumed", address=self._address)
        self._faults, self._opened_until, self._pause_s, self._is_trying = 0, None, PAUSE_S, False
        self.is_calm = True

    def fail(self, now: float) -> None:
        """Note a command that was not answered."""
        self._faults += 1
        self.is_calm = False
        if self._opened_until is not None and not self._is_trying:  # it was sent before the breaker opened
            return
        if self._is_trying or self._faults >= self._max_faults:
            if self._opened_until is None:
                log.warning("store.suspended", address=self._address, faults=self._faults)
            self._opened_until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._is_trying = False

    def give_up(self) -> None:
        """Note a command whose caller has left."""
        self._is_trying = False
