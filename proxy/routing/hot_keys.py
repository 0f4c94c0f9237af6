"""How often each affinity key is used, so that the calls of a hot one spread over the targets of a pool."""

import time
from collections import OrderedDict
from collections.abc import Callable

MINUTE_S = 60
MAX_KEYS = 16_384
"""How many keys are counted in a minute; the one that was counted first is forgotten for one more."""


class HotKeys:
    """Counts the calls of each key in the current minute, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def count(self, key: bytes) -> int:
        """Count a call, and return how many of its key there were before in this minute."""
        minute = int(self._clock() // MINUTE_S)
        if minute != self._minute:
            self._minute, self._counts = minute, OrderedDict()
        before = self._counts.get(key, 0)
        self._counts[key] = before + 1
        if len(self._counts) > MAX_KEYS:
            self._counts.popitem(last=False)
        return before
