"""Which beginnings of prompts the library keeps in memory, so that nobody reads them again.

The library keeps what it is told to, for ever, and forgets only all at once, with the model itself. So it is told to
keep little: beginnings that came at least twice under one key, as long as they fit. When one does not fit any more,
`full` asks for a reload; those that were used last are kept again as soon as they come, others must come twice anew.
Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html (static_prompt), CTranslate2 issue 1450.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from backends.local.engine.job import MIN_PROMPT_TOKENS, Job

# A shorter beginning is read again faster than it is worth.
MIN_TOKENS = 64
TIMES = 2
# Of how many beginnings it is known that they came.
MAX_KNOWN = 4096
# The key of beginnings that are kept for one job alone, to go on from whenever its grammar has corrected a token; how
# many tokens may be read again instead.
RESUMED, MAX_READ_AGAIN = "\0", 128


class Prefix(NamedTuple):
    """The beginning of a prompt. Its tokens are not held here: they may be many."""

    key: str
    digest: bytes
    tokens: int


NONE = Prefix("", b"", 0)


class Prefixes:
    """At most `limit_bytes` of beginnings; 0: none at all."""

    def __init__(self, limit_bytes: int, kv_bytes_per_token: int) -> None:
        self.full = False
        self._limit_bytes = limit_bytes
        self._token_bytes = max(1, kv_bytes_per_token)
        self._times: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._held: OrderedDict[bytes, int] = OrderedDict()  # how many tokens; the one used last at the end
        self._read: set[bytes] = set()  # of these, what the library has read by now

    @property
    def held_bytes(self) -> int:
        return sum(self._held.values()) * self._token_bytes

    def candidates(self, job: Job) -> Sequence[Prefix]:
        """The beginnings that may be kept of a job that has just come, the best first."""
        shared = self._seen(job)
        return self.resumable(job, shared) if job.options.grammar and job.options.alone else (shared,)

    def resumable(self, job: Job, shared: Prefix) -> Sequence[Prefix]:
        """The same for a job that its grammar holds, of which `shared` is known."""
        # Its grammar may interrupt it at every token; each time what comes behind the prefix is read again.
        nearly_all = self._of(job.prompt[:-MIN_PROMPT_TOKENS], RESUMED)
        far = len(job.prompt) - shared.tokens > MAX_READ_AGAIN
        return (nearly_all, shared) if far else (shared, nearly_all)

    def chosen(self, candidates: Sequence[Prefix]) -> Prefix:
        """The first that a batch can begin with: it is held, or it is worth it and there is room."""
        return next((prefix for prefix in candidates if self._usable(prefix)), NONE)

    def use(self, prefix: Prefix) -> int:
        """A batch begins with it now. How many tokens of each of its prompts are not read again."""
        if not prefix.tokens:
            return 0
        self._held[prefix.digest] = self._held.pop(prefix.digest, prefix.tokens)
        return prefix.tokens if prefix.digest in self._read else 0

    def read(self, prefix: Prefix) -> None:
        """The library has read it."""
        if prefix.digest in self._held:
            self._read.add(prefix.digest)

    def failed(self, prefix: Prefix) -> None:
        """The batch broke down; whether the library has read it is not known."""
        self._read.discard(prefix.digest)

    def emptied(self) -> None:
        """The model was loaded anew. What was used last goes on counting as worth it, up to half of the room."""
        self.full = False
        room, forgotten = self._limit_bytes // 2, set()
        for digest, tokens in reversed(self._held.items()):
            room -= tokens * self._token_bytes
            if room < 0:
                forgotten.add(digest)
        for known in [known for known in self._times if known[1] in forgotten]:
            del self._times[known]
        self._held.clear()
        self._read.clear()

    def _seen(self, job: Job) -> Prefix:
        options = job.options
        length = min(options.prefix, len(job.prompt) - MIN_PROMPT_TOKENS) if options.prefix_key else 0
        prefix = self._of(job.prompt[:length], options.prefix_key)
        if prefix.tokens:
            known = (prefix.key, prefix.digest)
            self._times[known] = self._times.pop(known, 0) + 1
            if len(self._times) > MAX_KNOWN:
                self._times.popitem(last=False)
        return prefix

    def _usable(self, prefix: Prefix) -> bool:
        if not prefix.tokens:
            return False
        if prefix.key != RESUMED and self._times.get((prefix.key, prefix.digest), 0) < TIMES:
            return False
        if prefix.digest in self._held:
            return True
        size = prefix.tokens * self._token_bytes
        fits = self.held_bytes + size <= self._limit_bytes
        self.full = self.full or (not fits and size <= self._limit_bytes)
        return fits

    def _of(self, tokens: Sequence[int], key: str) -> Prefix:
        if not self._limit_bytes or len(tokens) < MIN_TOKENS:
            return NONE
        return Prefix(key, hashlib.blake2b(array("I", tokens).tobytes(), digest_size=16).digest(), len(tokens))
