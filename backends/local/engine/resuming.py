"""When it pays to end a call and go on with another one that has read what the grammar forced.

To say k tokens takes k steps; a new call reads them at once, and all of the answer before them again. What either costs
is seen in the answer itself while it is made.
"""

import math
import time

# So often a model is not asked to say what was forced, after it would have said something else.
UNTRUSTED = 4


class Resuming:
    """The pace of one answer."""

    def __init__(self, kept: int) -> None:
        self._unread = kept  # perhaps the first call reads the prompt's beginning too; later ones do not
        self._began = self._last = 0.0
        self._tokens = 0
        self._first = True
        self._step_s = math.inf
        self._read_s_per_token = math.inf
        self._untrusted = 0

    def begins(self, tokens: int) -> None:
        """A call that reads so many tokens."""
        self._first, self._tokens = True, tokens + self._unread
        self._unread = 0
        self._began = time.perf_counter()

    def steps(self) -> None:
        """The call that runs has brought a token."""
        now = time.perf_counter()
        if self._first:
            self._first = False
            self._read_s_per_token = min(self._read_s_per_token, (now - self._began) / self._tokens)
        else:
            self._step_s = min(self._step_s, now - self._last)
        self._last = now

    def followed(self, *, same: bool) -> None:
        """Whether the model has said by itself what was forced."""
        self._untrusted = 0 if same else UNTRUSTED

    def pays(self, ahead: int, tokens: int) -> bool:
        """Whether a new call that reads so many tokens is over sooner than so many steps."""
        if not ahead:
            return False
        if self._untrusted:
            self._untrusted -= 1
            return True
        # However few tokens it reads, it reads all of the model's weights.
        return ahead * self._step_s > max(self._step_s, tokens * self._read_s_per_token)
