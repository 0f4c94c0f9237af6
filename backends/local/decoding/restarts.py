"""When it pays to end a call and go on with another one that has read what the grammar forced.

To say k tokens takes k steps; a new call reads them at once, and all of the answer before them again. What either costs
is seen in the answer itself while it is made.
"""

import math
import time

# So often a model is not asked to say what was forced, after it would have said something else.
UNTRUSTED = 4
# For how long an answer may be read again because its grammar corrects it, in all: so long, or so many times as long as
# its prompt took; and so many times as long as it takes to say it.
AGAIN_S, AGAIN_READINGS, AGAIN_TIMES = 30.0, 64, 4


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
        self._corrected = False
        self._reading_s = self._again_s = self._said_s = 0.0

    @property
    def astray(self) -> bool:
        """Whether this leads nowhere: at each token a grammar corrects, all that was said before is read again."""
        return self._again_s > max(AGAIN_S, AGAIN_READINGS * self._reading_s) + AGAIN_TIMES * self._said_s

    def keep(self, tokens: int) -> None:
        """The next call reads so many besides, and later ones do not."""
        self._unread = tokens

    def begins(self, tokens: int, *, corrected: bool = False) -> None:
        """A call that reads so many tokens, perhaps because the last one had to be corrected."""
        self._first, self._tokens = True, tokens + self._unread
        self._unread = 0
        self._corrected = corrected
        self._began = time.perf_counter()

    def steps(self) -> None:
        """The call that runs has brought a token."""
        now = time.perf_counter()
        if self._first:
            self._first = False
            self._read_s_per_token = min(self._read_s_per_token, (now - self._began) / self._tokens)
            self._reading_s = self._reading_s or now - self._began
            self._again_s += now - self._began if self._corrected else 0.0
        else:
            self._step_s = min(self._step_s, now - self._last)
            self._said_s += now - self._last
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
