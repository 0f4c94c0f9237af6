"""Observes how much work the event loop's thread does itself, in calls instead of seconds."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec import structs

from proxy.wire.bounds import has_more_values
from proxy.workers import LARGE_BYTES, MANY_VALUES

ROOT = Path(__file__).parent.parent
GATEWAY = tuple(f"{ROOT / name}/" for name in ("proxy", "policies", "backends"))
# Functions of libraries that read the whole of a text in one call, and those that copy it.
READERS = frozenset({"count", "find", "fullmatch", "loads", "search", "sha256", "split", "update"})
COPIERS = frozenset({
    "decode", "dumps", "encode", "join", "removeprefix", "replace", "splitlines", "write", "writelines",
})  # fmt: skip
TRANSPORT = "asyncio/selector_events.py"  # its `write` copies what is not sent at once
MOST_LOOKED_AT = 200
MOST_VALUES = 2 * MANY_VALUES


class LoopWork:
    """What the gateway's code calls in the thread of the event loop, and in threads that are started later.

    `on_loop`, `in_threads`: which READERS and COPIERS were applied to large texts there; `loads` also if it was applied
    to a short one of many values. `decompressions`: how many steps of decompression the loop's thread made. `most_calls`:
    the most calls of the gateway's functions in one step of the loop.
    """

    def __init__(self) -> None:
        self.on_loop: set[str] = set()
        self.in_threads: set[str] = set()
        self.decompressions = 0
        self.most_calls = 0
        self._calls = 0
        self._thread = threading.get_ident()

    def observe(self, frame: FrameType, event: str, function: Any) -> None:
        """Record a call; see `sys.setprofile`."""
        code = frame.f_code
        is_loop = threading.get_ident() == self._thread
        if event == "call" and code.co_name == "write" and code.co_filename.endswith(TRANSPORT):
            self._record_write(frame)
        elif not code.co_filename.startswith(GATEWAY):
            if (
                is_loop
                and event == "call"
                and code.co_name == "_run"
                and code.co_filename.endswith("asyncio/events.py")
            ):
                self._calls = 0
        elif event == "call" and is_loop:
            self._calls += 1
            self.most_calls = max(self.most_calls, self._calls)
        elif event == "c_call" and function is not structs.replace:  # which copies no text
            self._record_library_call(frame, function.__name__, is_loop=is_loop)

    def _record_library_call(self, frame: FrameType, name: str, *, is_loop: bool) -> None:
        if name == "decompress":
            self.decompressions += is_loop
        elif name in READERS:
            if any(_takes_long(value, name) for value in frame.f_locals.values()):
                self._record(name, is_loop=is_loop)
        elif name in COPIERS and any(_is_larger(value) for value in frame.f_locals.values()):
            self._record(name, is_loop=is_loop)

    def _record_write(self, frame: FrameType) -> None:
        writer = frame.f_back
        if writer and writer.f_code.co_filename.startswith(GATEWAY) and len(frame.f_locals["data"]) > LARGE_BYTES:
            self._record("write", is_loop=True)

    def _record(self, name: str, *, is_loop: bool) -> None:
        (self.on_loop if is_loop else self.in_threads).add(name)


def _takes_long(value: object, reader: str) -> bool:
    """Whether it takes long to read a text: a large one, and to parse a short one of many values."""
    if not isinstance(value, bytes | str):
        return False
    is_dense = reader == "loads" and isinstance(value, bytes) and has_more_values(value, MOST_VALUES)
    return len(value) >= LARGE_BYTES or is_dense


def _is_larger(root: object) -> bool:
    """Whether a value is larger than one read of a socket: a text, or a container of texts that are so together."""
    waiting, looked_at, size = [root], 0, 0
    while waiting and looked_at < MOST_LOOKED_AT:
        value = waiting.pop()
        looked_at += 1
        if isinstance(value, bytes | bytearray | str):
            size += len(value)
        elif isinstance(value, dict):
            waiting += islice(value.values(), MOST_LOOKED_AT)
        elif isinstance(value, list | tuple):
            waiting += islice(value, MOST_LOOKED_AT)
    return size > LARGE_BYTES


@contextmanager
def observed_loop(*, threads: bool = False) -> Iterator[LoopWork]:
    """Observe this thread, which runs the event loop; and `threads` that are started meanwhile, which is slow."""
    work = LoopWork()
    if threads:
        threading.setprofile(work.observe)
    sys.setprofile(work.observe)
    try:
        yield work
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
