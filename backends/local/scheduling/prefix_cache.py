"""Keeps prompt prefixes in the library's memory, so that they are not read again.

The library keeps every static prompt until its model is unloaded, and cannot drop a single one. The cache is therefore
selective: it keeps prefixes that came at least twice under one key while they fit, and, in up to half of its memory,
prompts of answers that their grammars interrupt repeatedly. When a shared prefix no longer fits, the cache requests
a reset, which reloads the model. The prefixes that were used last are then kept again at their next use; all others
have to come twice again.

Cached tokens are counted and reported by `prefix_key`, so callers see only their own. The library itself finds a prefix
by its tokens alone, so the time to the first token can still reveal that another caller sent the same tokens.
Not keeping the second one would reveal as much. prefix_cache_bytes = 0 keeps no prefixes.

Source: https://opennmt.net/CTranslate2/python/ctranslate2.Generator.html (static_prompt), CTranslate2 issue 1450.
"""

import asyncio
import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import structlog

from backends.local.decoding.job import MIN_PROMPT_TOKENS, Job
from proxy.freed_memory import trim_heap
from proxy.wire.loggable import short_message

log = structlog.get_logger()

# A shorter prefix costs more to keep than to read again.
MIN_PREFIX_TOKENS = 64
USES_BEFORE_KEEPING = 2
MAX_KNOWN_PREFIXES = 4096
# How many tokens are read again after each correction by a grammar before more of the prompt is kept, and which
# fraction of the memory such prompts may use.
MAX_REREAD_TOKENS, INTERRUPTED_FRACTION = 128, 0.5
# Resets may take this fraction of the time.
RESET_FRACTION = 0.01
# Under constant load, no job starts for DRAIN_S every DRAIN_EVERY_S, so that the model may become idle.
DRAIN_S, DRAIN_EVERY_S = 1.0, 30.0
# How long the library may still use a model after its last call has returned.
UNLOAD_TIMEOUT_S = 0.5


class Prefix(NamedTuple):
    """The beginning of a prompt, without its tokens: they may be many."""

    key: str  # which requests share it
    digest: bytes  # of the key and the tokens
    tokens: int


NO_PREFIX = Prefix("", b"", 0)


class PrefixCache:
    """Accounts for the prefixes that the library keeps, at most `limit_bytes`; 0: none."""

    def __init__(self, limit_bytes: int, kv_bytes_per_token: int) -> None:
        self.needs_reset = False
        self._limit_bytes = limit_bytes
        self._token_bytes = max(1, kv_bytes_per_token)
        self._uses: OrderedDict[bytes, int] = OrderedDict()
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # digest -> tokens, most recently used last
        self._read: set[bytes] = set()  # the kept prefixes that the library has read

    @property
    def kept_bytes(self) -> int:
        """The memory that the kept prefixes use."""
        return sum(self._kept.values()) * self._token_bytes

    def count_use(self, job: Job) -> Prefix:
        """Return the prefix that a new job may share with others under its key, and count its use."""
        options = job.options
        length = min(options.prefix_tokens, len(job.prompt) - MIN_PROMPT_TOKENS) if _has_key(job) else 0
        prefix = self._prefix(job.prompt[:length], options.prefix_key)
        if prefix.tokens:
            self._uses[prefix.digest] = self._uses.pop(prefix.digest, 0) + 1
            if len(self._uses) > MAX_KNOWN_PREFIXES:
                self._uses.popitem(last=False)
        return prefix

    def usable(self, prefix: Prefix) -> Prefix:
        """Return the prefix if a batch can start with it: it is kept, or may be kept from now on; else NO_PREFIX."""
        fits = self._fits(prefix, self._limit_bytes - self.kept_bytes)
        return prefix if self._is_worth_keeping(prefix) and fits else NO_PREFIX

    def count_miss(self, prefix: Prefix) -> None:
        """Request a reset if a batch starts without this prefix only because the memory is full."""
        could_fit = self._is_worth_keeping(prefix) and self._fits(prefix, self._limit_bytes)
        if could_fit and not self.usable(prefix).tokens:
            self.needs_reset = True

    def for_interrupted(self, job: Job, kept: Prefix) -> Prefix:
        """Return nearly all of a prompt that its grammar interrupts repeatedly, of which `kept` is kept already.

        After each interruption everything behind the kept prefix is read again. Returns NO_PREFIX when that is
        little, or when other prefixes need the memory.
        """
        if len(job.prompt) - kept.tokens <= MAX_REREAD_TOKENS:
            return NO_PREFIX
        prefix = self._prefix(job.prompt[:-MIN_PROMPT_TOKENS], job.options.prefix_key)
        fits = self._fits(prefix, self._limit_bytes * INTERRUPTED_FRACTION - self.kept_bytes)
        return prefix if fits else NO_PREFIX

    def keep(self, prefix: Prefix) -> int:
        """Keep a prefix with which a batch starts now; return how many of its tokens are not read again."""
        if not prefix.tokens:
            return 0
        self._kept[prefix.digest] = self._kept.pop(prefix.digest, prefix.tokens)
        return prefix.tokens if prefix.digest in self._read else 0

    def mark_read(self, prefix: Prefix) -> None:
        """Record that the library has read the prefix."""
        if prefix.digest in self._kept:
            self._read.add(prefix.digest)

    def mark_unread(self, prefix: Prefix) -> None:
        """Record that the batch failed and the library may not have read the prefix."""
        self._read.discard(prefix.digest)

    def clear(self) -> None:
        """Record a reset. The prefixes that were used last keep their counts, up to half of the memory."""
        self.needs_reset = False
        remaining_bytes, forgotten = self._limit_bytes // 2, set()
        for digest, tokens in reversed(self._kept.items()):
            remaining_bytes -= tokens * self._token_bytes
            if remaining_bytes < 0:
                forgotten.add(digest)
        for digest in forgotten:
            self._uses.pop(digest, None)
        self._kept.clear()
        self._read.clear()

    def _is_worth_keeping(self, prefix: Prefix) -> bool:
        return self._uses.get(prefix.digest, 0) >= USES_BEFORE_KEEPING

    def _fits(self, prefix: Prefix, free_bytes: float) -> bool:
        return prefix.digest in self._kept or prefix.tokens * self._token_bytes <= free_bytes

    def _prefix(self, tokens: Sequence[int], key: str) -> Prefix:
        if not self._limit_bytes or len(tokens) < MIN_PREFIX_TOKENS:
            return NO_PREFIX
        digest = hashlib.blake2b(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), digest_size=16)
        digest.update(array("I", tokens).tobytes())
        return Prefix(key, digest.digest(), len(tokens))


def _has_key(job: Job) -> bool:
    """Return whether the caller sent a prompt_cache_key: it follows the team's name in `prefix_key`."""
    return not job.options.prefix_key.endswith("\0") and bool(job.options.prefix_key)


class PrefixCacheReset:
    """Reloads the model when the prefix cache requires it: only that frees prefixes, and only while nothing runs.

    The scheduler calls `blocks_start` before it starts jobs; `resume` is called when it may start jobs again.
    """

    def __init__(self, generator: Any, prefixes: PrefixCache, resume: Callable[[], None]) -> None:
        self._generator = generator
        self._prefixes = prefixes
        self._resume = resume
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._earliest = 0.0
        self._drains_from = self._drains_until = 0.0
        self._closed = False

    def blocks_start(self, *, busy: bool) -> bool:
        """Return whether no job may start now; `busy`: other jobs are running. Begins a reset that is due."""
        if self._closed or self._task is not None:
            return True
        now = self._loop.time()
        if not self._prefixes.needs_reset or now < self._earliest:
            return False
        if not busy:
            self._task = self._loop.create_task(self._reset())
            return True
        if now >= self._drains_from:
            self._drains_from, self._drains_until = now + DRAIN_EVERY_S, now + DRAIN_S
            self._loop.call_at(self._drains_until, self._resume)
        return now < self._drains_until

    async def close(self) -> None:
        """Block all further starts and wait for a running reset."""
        self._closed = True
        if self._task is not None:
            await self._task
        self._generator = None

    async def _reset(self) -> None:
        began = self._loop.time()
        try:
            await asyncio.to_thread(reload_model, self._generator)
        except (RuntimeError, OSError, MemoryError) as error:
            log.error("model.reload_failed", error=short_message(error))  # noqa: TRY400  the message is complete
        else:
            self._prefixes.clear()
        ended = self._loop.time()
        self._earliest = ended + (ended - began) / RESET_FRACTION
        self._task = None
        self._resume()


def reload_model(generator: Any) -> None:
    """Empty the library's cache of static prompts. No call may be running. Raises RuntimeError if one is."""
    until = time.monotonic() + UNLOAD_TIMEOUT_S
    generator.unload_model()
    while generator.model_is_loaded:  # the library releases the model a moment after a call has returned
        if time.monotonic() > until:
            raise RuntimeError("the model is in use")  # the library ignores the unload without an error
        time.sleep(UNLOAD_TIMEOUT_S / 50)
        generator.unload_model()
    trim_heap()
    generator.load_model()
