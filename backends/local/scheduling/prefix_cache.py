"""Which beginnings of prompts the library keeps in memory, so that nobody reads them again.

The library keeps what it is told to, for ever, and forgets only all at once, with the model itself. So it is told to
keep little: beginnings that came at least twice under one key, as long as they fit, and the prompts of answers that
their grammars interrupt again and again, as long as half of the room is left. When a shared one does not fit any more,
`full` asks for a reload; those that were used last are kept again as soon as they come, others must come twice anew.
Nobody is told what others asked: a beginning is found by its tokens and by who may have it in common, which is what
`prefix_key` says. One thing stays open: the library itself finds it by its tokens alone, so who sends all the tokens of
what is kept for others may measure that they are read sooner than they should be. Not to keep them for the second one
would tell as much. Where that is too much, prefix_cache_bytes = 0 keeps none.

Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html (static_prompt), CTranslate2 issue 1450.
"""

import asyncio
import ctypes
import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog

from backends.local.decoding.job import MIN_PROMPT_TOKENS, Job

# A shorter beginning is read again faster than it is worth.
MIN_TOKENS = 64
TIMES = 2
# Of how many beginnings it is known that they came.
MAX_KNOWN = 4096
# How many tokens may be read again, each time that a grammar has corrected one, rather than that more is kept; and
# which part of the room those may take that keep their prompts for themselves.
MAX_READ_AGAIN, OWN_PART = 128, 0.5


class Prefix(NamedTuple):
    """The beginning of a prompt. Its tokens are not held here: they may be many."""

    key: str  # among whom it is shared
    digest: bytes  # of its key and its tokens
    tokens: int


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

    def shared(self, job: Job) -> Prefix:
        """What a job that has just come may have in common with others under its key; that it came is remembered."""
        options = job.options
        length = min(options.prefix, len(job.prompt) - MIN_PROMPT_TOKENS) if _names_a_key(job) else 0
        prefix = self._of(job.prompt[:length], options.prefix_key)
        if prefix.tokens:
            self._times[prefix.digest] = self._times.pop(prefix.digest, 0) + 1
            if len(self._times) > MAX_KNOWN:
                self._times.popitem(last=False)
        return prefix

    def usable(self, prefix: Prefix) -> Prefix:
        """It, when a batch can begin with it: it is held, or it is worth it and there is room; otherwise nothing."""
        worth = self._times.get(prefix.digest, 0) >= TIMES
        return prefix if worth and self._fits(prefix, self._limit_bytes - self.held_bytes) else NONE

    def missed(self, prefix: Prefix) -> None:
        """A batch begins without it now: if only for want of room, that is asked for."""
        worth = self._times.get(prefix.digest, 0) >= TIMES
        if worth and not self.usable(prefix).tokens and self._fits(prefix, self._limit_bytes):
            self.full = True

    def own(self, job: Job, kept: Prefix) -> Prefix:
        """Nearly all of a prompt that its grammar interrupts again and again, beyond what is kept of it already.

        Each time all that comes behind is read again. Nothing where that is little, or where others need the room.
        """
        if len(job.prompt) - kept.tokens <= MAX_READ_AGAIN:
            return NONE
        prefix = self._of(job.prompt[:-MIN_PROMPT_TOKENS], job.options.prefix_key)
        return prefix if self._fits(prefix, self._limit_bytes * OWN_PART - self.held_bytes) else NONE

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
        for digest in forgotten:
            self._times.pop(digest, None)
        self._held.clear()
        self._read.clear()

    def _fits(self, prefix: Prefix, room_bytes: float) -> bool:
        return prefix.digest in self._held or prefix.tokens * self._token_bytes <= room_bytes

    def _of(self, tokens: Sequence[int], key: str) -> Prefix:
        if not self._limit_bytes or len(tokens) < MIN_TOKENS:
            return NONE
        digest = hashlib.blake2b(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), digest_size=16)
        digest.update(array("I", tokens).tobytes())
        return Prefix(key, digest.digest(), len(tokens))


def _names_a_key(job: Job) -> bool:
    """Whether its caller says that others have its beginning in common: behind the name of its team there is a key."""
    return not job.options.prefix_key.endswith("\0") and bool(job.options.prefix_key)


log = structlog.get_logger()

# How long a model may be in use after its last call.
IN_USE_S = 0.5
# Loading may take this part of the time.
PART = 0.01
# While there is always something to do the model is kept from it for so long, so seldom, in case what runs ends soon.
DRAINED_S, DRAINED_EVERY_S = 1.0, 30.0


class Reloading:
    """Asked before anything is started; `again` is called when that may go on."""

    def __init__(self, generator: Any, prefixes: Prefixes, again: Callable[[], None]) -> None:
        self._generator = generator
        self._prefixes = prefixes
        self._again = again
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._drains_from = self._drains_until = 0.0
        self._closed = False

    def holds_back(self, busy: bool) -> bool:  # noqa: FBT001  the one thing it is told
        """Whether nothing may be started now."""
        if self._closed or self._task is not None:
            return True
        now = self._loop.time()
        if not self._prefixes.full or now < self._not_before:
            return False
        if not busy:
            self._task = self._loop.create_task(self._reload())
            return True
        if now >= self._drains_from:
            self._drains_from, self._drains_until = now + DRAINED_EVERY_S, now + DRAINED_S
            self._loop.call_at(self._drains_until, self._again)
        return now < self._drains_until

    async def close(self) -> None:
        """From now on nothing is started."""
        self._closed = True
        if self._task is not None:
            await self._task
        self._generator = None

    async def _reload(self) -> None:
        began = self._loop.time()
        try:
            await asyncio.to_thread(reload, self._generator)
        except (RuntimeError, OSError, MemoryError) as error:
            log.error("local.reload_failed", error=str(error))  # noqa: TRY400  the sentence says it all
        else:
            self._prefixes.emptied()
        ended = self._loop.time()
        self._not_before = ended + (ended - began) / PART
        self._task = None
        self._again()


def reload(generator: Any) -> None:
    """Empty the library's cache of prompts, which nothing else does. Nothing may run. Raises RuntimeError."""
    until = time.monotonic() + IN_USE_S
    generator.unload_model()
    while generator.model_is_loaded:  # a call returns a moment before its model is free
        if time.monotonic() > until:
            raise RuntimeError("the model is in use")  # then the library does nothing, and says nothing
        time.sleep(IN_USE_S / 50)
        generator.unload_model()
    _give_back_memory()
    generator.load_model()


def _give_back_memory() -> None:
    """What was freed stays with the process until the C library is asked; only glibc has that function."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
