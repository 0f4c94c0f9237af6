"""Returns freed memory to the system where glibc would keep it. On other C libraries it does nothing.

glibc returns a block from MAPPED_BYTES on when it is freed, but smaller ones only at the end of the heap, where
KEPT_BYTES stay: one small block in use there keeps all that is free before it. Many streams or bodies that end at once
leave hundreds of MB so.

Source: https://man7.org/linux/man-pages/man3/malloc_trim.3.html, mallopt(3), mallinfo(3), proc_pid_statm(5)
"""

import ctypes
import math
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # the parameters' numbers in glibc's malloc.h
MAPPED_BYTES = 131_072
"""From this size on a block is returned when it is freed. From 32 KiB on a body of 100 kB took 10 to 30 % more CPU."""
KEPT_BYTES = 4_194_304
"""How much that is free at the end of the heap is not returned when it is freed, in bytes. It would be from 128 KiB on,
and a stream in chunks of 60 kB took and freed so much each time, with nine page faults."""
STEP_BYTES = 33_554_432
"""How much free memory the heap keeps, in bytes."""
INTERVAL_S = 1.0
"""The interval at which the heap is inspected, in seconds."""
TRIM_SHARE = 0.01
"""Which share of the time is spent on returning memory at most: threads that need more of the heap wait meanwhile."""
LOOK_SHARE, MAX_LOOK_INTERVAL_S = 0.001, 5.0
"""The same of looking at the heap, up to this interval. It takes 5 ms where a tokenizer has left many free blocks."""


def read_resident_bytes() -> int:
    """Return how much memory this process has. Raises OSError where the system does not report it."""
    with open("/proc/self/statm", "rb") as pages:  # noqa: PTH123  a Path takes half as long again as all of this
        return int(pages.read().split()[1]) * resource.getpagesize()


class Heap(Protocol):
    """The heap of a process. All sizes are in bytes."""

    def resident_bytes(self) -> int:
        """Return how much memory the process has."""

    def free_bytes(self) -> int:
        """Return how much of the heap is free, returned to the system or not."""

    def trim(self) -> None:
        """Give the system the memory of all that is free."""


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip
    fordblks: int


class GlibcHeap:
    """The heap of this process, in all arenas. While a function of glibc runs, other Python threads do."""

    def __init__(self) -> None:
        """Raises AttributeError if the C library is not glibc of 2.33 or later, OSError."""
        self._mallinfo = ctypes.CDLL(None).mallinfo2
        self._mallinfo.argtypes, self._mallinfo.restype = (), _MallocInfo
        self.resident_bytes()  # which needs /proc

    def resident_bytes(self) -> int:
        return read_resident_bytes()

    def free_bytes(self) -> int:
        return int(self._mallinfo().fordblks)

    def trim(self) -> None:
        trim_heap()


class Trimmer:
    """Trims a heap when about STEP_BYTES of it are free and not returned yet.

    glibc does not tell what is returned already. What was in use since the last trim and is free now is not; nor is
    what the process has more than at its least since then, unless it is in use.
    """

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        self._first_bytes = self._least_resident = heap.resident_bytes()
        self._least_free = heap.free_bytes()

    def trim_if_due(self) -> bool:
        """Inspect the heap, and return whether it was trimmed."""
        resident = self._heap.resident_bytes()
        self._least_resident = min(self._least_resident, resident)
        if resident < self._first_bytes + STEP_BYTES:  # the usual case, which costs least
            return False
        free = self._heap.free_bytes()
        self._least_free = min(self._least_free, free)
        if free < STEP_BYTES or max(resident - self._least_resident, free - self._least_free) < STEP_BYTES:
            return False
        self._heap.trim()
        self._least_resident, self._least_free = self._heap.resident_bytes(), self._heap.free_bytes()
        return True


def map_large_blocks() -> None:
    """Make glibc map large blocks one by one, so that the system gets their memory when they are freed.

    By itself glibc raises the size from which it does so up to 32 MiB. Other C libraries have no such parameter.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def keep_end_of_heap() -> None:
    """Make glibc keep KEPT_BYTES of what is free at the end of the heap. Other C libraries have no such parameter."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def trim_heap() -> None:
    """Return the free part of the heap to the system. Threads that allocate wait meanwhile, 0.1 to 0.2 ms per MB."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Return freed memory from now on, in a thread until the block is left."""
    map_large_blocks()
    keep_end_of_heap()
    stopped = threading.Event()
    with suppress(OSError, AttributeError):
        trimmer = Trimmer(GlibcHeap())
        threading.Thread(target=_trim_until, args=(trimmer, stopped), name="freed-memory", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def pause_after(spent_s: float, *, is_trimmed: bool) -> float:
    """Return how long to leave the heap alone after it was looked at, or trimmed, for so long, in seconds."""
    longest_s = math.inf if is_trimmed else MAX_LOOK_INTERVAL_S
    return max(INTERVAL_S, min(longest_s, spent_s / (TRIM_SHARE if is_trimmed else LOOK_SHARE)))


def _trim_until(trimmer: Trimmer, stopped: threading.Event) -> None:
    pause_s = INTERVAL_S
    while not stopped.wait(pause_s):
        began, is_trimmed = time.monotonic(), False
        with suppress(OSError):  # a process that has all the files open that it may cannot read /proc for a while
            is_trimmed = trimmer.trim_if_due()
        pause_s = pause_after(time.monotonic() - began, is_trimmed=is_trimmed)
