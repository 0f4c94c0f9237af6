"""Memory that is freed goes back to the system."""

import asyncio
import ctypes
import errno
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
from yarl import URL

from proxy import freed_memory
from proxy.freed_memory import STEP_BYTES, Trimmer, pause_after, returning_freed_memory, trim_heap
from tests.conftest import CANNED
from tests.timeouts import TIMEOUT_S, fail_if_stuck, pause

ROOT = Path(__file__).parent.parent
HELD, PART_BYTES, PINS = 400, 250_000, 4
"""How many bodies are held, how much of each has arrived, and after how many of them a connection stays."""


class ScriptedHeap:
    """A heap whose sizes a test sets, in steps; what is trimmed is no longer resident."""

    def __init__(self, base: int) -> None:
        self.base, self.used, self.free, self.returned = base, 0, 0, 0

    def take(self, steps: float) -> None:
        """Use memory of the heap: what is free before the rest."""
        size = int(steps * STEP_BYTES)
        reused = min(self.free, size)
        self.used += size
        self.free -= reused
        self.returned = min(self.returned, self.free)

    def give(self, steps: float) -> None:
        self.used -= int(steps * STEP_BYTES)
        self.free += int(steps * STEP_BYTES)

    def map(self, steps: float) -> None:
        """Use memory beside the heap."""
        self.base += int(steps * STEP_BYTES)

    def resident_bytes(self) -> int:
        return self.base + self.used + self.free - self.returned

    def free_bytes(self) -> int:
        return self.free

    def trim(self) -> None:
        self.returned = self.free


def test_free_memory_is_returned_and_used_memory_left_alone():
    """Less than a step is not worth a look."""
    heap = ScriptedHeap(10 * STEP_BYTES)
    trimmer = Trimmer(heap)
    small, used = (heap.take(0.5), heap.give(0.5), trimmer.trim_if_due())[2], (heap.take(5), trimmer.trim_if_due())[1]
    heap.give(4)

    assert (small, used) == (False, False)
    assert (trimmer.trim_if_due(), heap.returned) == (True, heap.free)
    assert trimmer.trim_if_due() is False


def test_memory_that_was_used_and_freed_between_two_looks_is_returned():
    """As much is free as after the last trim, but the process has it again."""
    heap = ScriptedHeap(STEP_BYTES)
    trimmer = Trimmer(heap)
    first = (heap.take(4), trimmer.trim_if_due(), heap.give(4), trimmer.trim_if_due())[3]
    again = (heap.take(4), heap.give(4), trimmer.trim_if_due())[2]

    assert (first, again, heap.returned) == (True, True, heap.free)


def test_memory_that_is_freed_after_a_trim_in_vain_is_returned():
    """What the process uses beside the heap looks like something that can be returned, once."""
    heap = ScriptedHeap(STEP_BYTES)
    trimmer = Trimmer(heap)
    heap.take(6)
    heap.give(4)
    first = trimmer.trim_if_due()
    vain = (heap.map(2), trimmer.trim_if_due(), trimmer.trim_if_due())[1:]
    later = (heap.give(1.5), trimmer.trim_if_due())[1]

    assert (first, vain, later, heap.returned) == (True, (True, False), True, heap.free)


@pytest.mark.parametrize(
    ("spent_s", "is_trimmed", "pause_s"),
    [(0.0, False, 1.0), (0.0005, False, 1.0), (0.002, False, 2.0), (0.1, False, 5.0), (0.005, True, 1.0), (0.2, True, 20.0)],
)  # fmt: skip
def test_a_heap_that_takes_long_is_looked_at_less_often(spent_s: float, pause_s: float, *, is_trimmed: bool):
    """Looking takes a thousandth of the time at most, or happens every five seconds; trimming a hundredth."""
    assert pause_after(spent_s, is_trimmed=is_trimmed) == pytest.approx(pause_s)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """One without glibc's functions: no thread is started, and nothing is trimmed."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    trim_heap()
    with returning_freed_memory():
        names = [thread.name for thread in threading.enumerate()]

    assert "freed-memory" not in names


def test_memory_is_returned_after_files_have_run_out(monkeypatch: pytest.MonkeyPatch):
    """The sizes cannot be read meanwhile: the process has all the files open that it may."""
    monkeypatch.setattr(freed_memory, "INTERVAL_S", 0.001)
    heap, stopped, reads = ScriptedHeap(STEP_BYTES), threading.Event(), 0
    trimmer = Trimmer(heap)
    heap.take(4)
    heap.give(4)

    def resident_bytes() -> int:
        nonlocal reads
        reads += 1
        if reads <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        stopped.set()
        return ScriptedHeap.resident_bytes(heap)

    monkeypatch.setattr(heap, "resident_bytes", resident_bytes)
    with fail_if_stuck():
        freed_memory._trim_until(trimmer, stopped)

    assert heap.returned == heap.free == 4 * STEP_BYTES


def test_the_thread_ends_with_the_server():
    """It is there only while the server runs."""
    with returning_freed_memory():
        (thread,) = [each for each in threading.enumerate() if each.name == "freed-memory"]
    thread.join(TIMEOUT_S)

    assert not thread.is_alive()


def test_large_blocks_are_returned_at_once():
    """This holds even if smaller blocks between them are still in use, as with the chunks of a body."""
    script = """
        from pathlib import Path
        from proxy.freed_memory import map_large_blocks

        def resident_kb():
            return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

        map_large_blocks()
        before = resident_kb()
        bytearray(8_000_000).clear()  # freeing this would raise glibc's threshold
        large, small = [], []
        for _ in range(1000):
            large.append(bytearray(250_000))
            small.append(bytearray(2_000))
        most = resident_kb()
        large.clear()
        print(most - before > 200_000, resident_kb() - before < 50_000)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)

    assert run.stdout == "True True\n"


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_is_taken_again_and_again_is_kept(*, is_kept: bool):
    """Pages that are returned to the system each time are faulted in each time."""
    script = f"""
        from resource import RUSAGE_SELF, getrusage
        from proxy.freed_memory import keep_end_of_heap, map_large_blocks

        map_large_blocks()
        if {is_kept}:
            keep_end_of_heap()
        blocks = [b"x" * 60_000 for _ in range(10)]
        blocks.clear()
        before = getrusage(RUSAGE_SELF).ru_minflt
        for _ in range(100):
            blocks += [b"x" * 60_000 for _ in range(10)]
            blocks.clear()
        print(getrusage(RUSAGE_SELF).ru_minflt - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert (faults < 100) is is_kept


def resident_bytes(process: asyncio.subprocess.Process) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


async def send_part(address: URL, size: int) -> asyncio.StreamWriter:
    """Send a part of a body on a connection of its own, in writes that arrive one by one."""
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 10000000\r\n\r\n" + b" " * size)
    await writer.drain()
    return writer


async def wait_for_memory(process: asyncio.subprocess.Process, *, more: int = 0, less: int = 2**62) -> None:
    """Raises TimeoutError if the process has no such amount of memory in time."""
    async with asyncio.timeout(TIMEOUT_S):
        while not more < resident_bytes(process) < less:
            await pause()


@pytest.fixture
async def process(tmp_path: Path) -> Any:
    """A gateway, and its address."""
    (tmp_path / "gateway.toml").write_text(f"[server]\nport = 0\nbody_timeout_s = 300\n{CANNED}")
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(tmp_path / "gateway.toml")),
        cwd=ROOT, stdout=PIPE, stderr=DEVNULL,
    )  # fmt: skip
    assert gateway.stdout is not None
    greeting = (await gateway.stdout.readline()).decode().split()
    yield gateway, URL(greeting[3].removesuffix("/v1."))
    gateway.kill()
    await gateway.wait()


async def test_what_unfinished_bodies_took_is_returned_when_they_end(process: Any):
    """100 MB in pieces of at most 64 KiB, between connections that stay: glibc alone would keep most of it."""
    gateway, address = process
    before = resident_bytes(gateway)
    held, staying = [], []
    for number in range(HELD):
        held.append(await send_part(address, PART_BYTES))
        if number % PINS == 0:
            staying.append(await send_part(address, 3000))
    await wait_for_memory(gateway, more=before + HELD * PART_BYTES * 8 // 10)
    for writer in held:
        writer.transport.abort()
    await wait_for_memory(gateway, less=before + 2 * STEP_BYTES)

    for writer in staying:
        writer.transport.abort()
