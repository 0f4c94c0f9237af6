"""Which beginnings of prompts the library keeps in memory, so that nobody reads them again.

The library keeps what it is told to, for ever, and forgets only all at once, with the model itself. So it is told to
keep little: beginnings that came at least twice under one key, as long as they fit. When one does not fit any more,
`full` asks for a reload; those that were used last are kept again as soon as they come, others must come twice anew.
Nobody is told what others asked: a beginning is found by its tokens and by who may have it in common, which is what
`prefix_key` says. One thing stays open: the library itself finds it by its tokens alone, so who sends all the tokens of
what is kept for others may measure that they are read sooner than they should be. Not to keep them for the second one
would tell as much. Where that is too much, prefix_cache_bytes = 0 keeps none.

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
# How many tokens may be read again, each time that a grammar has corrected one, rather than that more is kept.
MAX_READ_AGAIN = 128


class Prefix(NamedTuple):
    """The beginning of a prompt. Its tokens are not held here: they may be many."""

    key: str  # among whom it is shared
    digest: bytes  # of its key and its tokens
    tokens: int
    at_once: bool = False  # kept as soon as it comes: one job alone reads it again and again
    told: bool = True  # whether a caller may learn that it came before


NONE = Prefix("", b"", 0)


class Prefixes:
    """At most `limit_bytes` of beginnings; 0: none at all."""

    def __init__(self, limit_bytes: int, kv_bytes_per_token: int) -> None:
        self.full = False
        self._limit_bytes = limit_bytes
        self._token_bytes = max(1, kv_bytes_per_token)
        self._times: OrderedDict[bytes, int] = OrderedDict()
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
        own = self._of(job.prompt[:-MIN_PROMPT_TOKENS], job.options.prefix_key)
        nearly_all = own._replace(at_once=True, told=_names_a_key(job))
        far = len(job.prompt) - shared.tokens > MAX_READ_AGAIN
        return (nearly_all, shared) if far else (shared, nearly_all)

    def chosen(self, candidates: Sequence[Prefix]) -> Prefix:
        """The first that a batch can begin with: it is held, or it is worth it and there is room."""
        return next((prefix for prefix in candidates if self._usable(prefix)), NONE)

    def use(self, prefix: Prefix) -> int:
        """A batch begins with it now. How many tokens of each of its prompts it may say are not read again."""
        if not prefix.tokens:
            return 0
        self._held[prefix.digest] = self._held.pop(prefix.digest, prefix.tokens)
        return prefix.tokens if prefix.told and prefix.digest in self._read else 0

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
        for digest in forgotten:
            self._times.pop(digest, None)
        self._held.clear()
        self._read.clear()

    def _seen(self, job: Job) -> Prefix:
        options = job.options
        length = min(options.prefix, len(job.prompt) - MIN_PROMPT_TOKENS) if _names_a_key(job) else 0
        prefix = self._of(job.prompt[:length], options.prefix_key)
        if prefix.tokens:
            self._times[prefix.digest] = self._times.pop(prefix.digest, 0) + 1
            if len(self._times) > MAX_KNOWN:
                self._times.popitem(last=False)
        return prefix

    def _usable(self, prefix: Prefix) -> bool:
        if not prefix.tokens:
            return False
        if not prefix.at_once and self._times.get(prefix.digest, 0) < TIMES:
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
        digest = hashlib.blake2b(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), digest_size=16)
        digest.update(array("I", tokens).tobytes())
        return Prefix(key, digest.digest(), len(tokens))


def _names_a_key(job: Job) -> bool:
    """Whether its caller says that others have its beginning in common: behind the name of its team there is a key."""
    return not job.options.prefix_key.endswith("\0") and bool(job.options.prefix_key)
