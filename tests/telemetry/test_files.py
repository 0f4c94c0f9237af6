"""A thread writes lines to files: in order, from a bounded queue, with lost lines counted, without blocking the caller."""

import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.files import MANY_LINES, LineQueue, append_lines, open_private
from tests.full_disk import disk_full_at
from tests.timeouts import TIMEOUT_S, fail_if_stuck


class BlockedWriter:
    """Blocks in its first write until `release` is set, and keeps its arguments."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[bytes], int]] = []
        self.started = threading.Event()
        self.release = threading.Event()

    def __call__(self, lines: list[bytes], lost: int) -> int:
        self.batches.append((lines, lost))
        self.started.set()
        self.release.wait()
        return 0

    @property
    def lines(self) -> list[bytes]:
        return [line for lines, _ in self.batches for line in lines]

    @property
    def lost(self) -> int:
        return sum(lost for _, lost in self.batches)


def full_disk(unwritten: list[int]) -> tuple[Callable[[list[bytes], int], int], list[tuple[list[bytes], int]]]:
    """Return a write function that reports these numbers of unwritten lines in turn and then 0, and a list of its batches."""
    batches: list[tuple[list[bytes], int]] = []

    def write(lines: list[bytes], lost: int) -> int:
        batches.append((lines, lost))
        return unwritten.pop(0) if unwritten else 0

    return write, batches


def test_lines_are_written_in_order_by_another_thread():
    """Closing the queue writes the remaining lines."""
    written: list[tuple[bytes, int]] = []

    def write(lines: list[bytes], _lost: int) -> int:
        written.extend((line, threading.get_ident()) for line in lines)
        return 0

    queue = LineQueue(write)
    for number in range(1000):
        queue.put(b"%d" % number)

    assert queue.close()
    assert [line for line, _ in written] == [b"%d" % number for number in range(1000)]
    assert threading.get_ident() not in {thread for _, thread in written}


def test_flush_waits_until_every_line_is_written():
    """All lines put before a flush are written when it returns."""
    written: list[bytes] = []

    def write(lines: list[bytes], _lost: int) -> int:
        written.extend(lines)
        return 0

    queue = LineQueue(write)
    counts = []
    for number in range(3):
        queue.put(b"%d" % number)
        assert queue.flush()
        counts.append(len(written))
    queue.close()

    assert counts == [1, 2, 3]


def test_put_does_not_wait_for_a_write_that_blocks():
    """The lines wait in the queue and are written when the write returns."""
    writer = BlockedWriter()
    queue = LineQueue(writer)
    queue.put(b"first")
    with fail_if_stuck():
        assert writer.started.wait()
        for _ in range(1000):
            queue.put(b"later")
    is_healthy = queue.is_healthy
    writer.release.set()

    assert queue.close()
    assert is_healthy
    assert writer.lines == [b"first"] + [b"later"] * 1000


def test_lines_that_do_not_fit_into_the_queue_are_counted():
    """The next batch has their number; lines in an unfinished write still use the queue's room."""
    writer = BlockedWriter()
    queue = LineQueue(writer, max_bytes=30)
    queue.put(b"0123456789")
    with fail_if_stuck():
        assert writer.started.wait()
    for _ in range(5):
        queue.put(b"0123456789")
    is_healthy = queue.is_healthy
    writer.release.set()
    queue.flush()
    healthy_again = queue.is_healthy
    queue.put(b"0123456789")
    queue.close()

    assert (is_healthy, healthy_again) == (False, True)
    assert (writer.lines, writer.lost) == ([b"0123456789"] * 4, 3)
    assert writer.batches[1] == ([b"0123456789"] * 2, 3)
    assert queue.lost_lines == 3


def test_of_lines_in_one_text_those_that_fit_are_written():
    """The others are counted one by one."""
    writer = BlockedWriter()
    queue = LineQueue(writer, max_bytes=30)
    queue.put_all(b"01234\n56789")
    with fail_if_stuck():
        assert writer.started.wait()
    queue.put_all(b"\n".join([b"0123456789"] * 4))
    writer.release.set()
    queue.close()

    assert (writer.lines, writer.lost) == ([b"01234\n56789", b"0123456789"], 3)
    assert queue.lost_lines == 3


def test_no_line_of_another_thread_comes_between_those_of_one_text():
    """It would take the room that was found for the text, all of which would count as one lost line."""
    writer = BlockedWriter()

    class InterruptedQueue(LineQueue):
        def put(self, line: bytes) -> None:
            if threading.current_thread() is threading.main_thread():
                other.start()
                other.join(0.1)  # it waits for the text
            super().put(line)

    queue = InterruptedQueue(writer, max_bytes=30)
    other = threading.Thread(target=queue.put, args=(b"0123456789",))
    queue.put_all(b"01234\n56789\n01234\n56789")
    other.join()
    writer.release.set()
    queue.close()

    assert writer.lines == [b"01234\n56789\n01234\n56789"]
    assert queue.lost_lines == 1


def test_a_line_larger_than_the_queue_is_reported_without_another_line():
    """Its loss is reported immediately, and the queue is healthy again."""
    write, batches = full_disk([])
    queue = LineQueue(write, max_bytes=10)
    queue.put(b"x" * 11)
    queue.flush()

    assert batches == [([], 1)]
    assert queue.is_healthy
    assert queue.close()


def test_lines_that_could_not_be_written_are_reported_with_the_next_ones():
    """The number of lost lines is passed to the next write until one can report it."""
    write, batches = full_disk([1, 3])
    queue = LineQueue(write)
    healthy = []
    for line in (b"one", b"two", b"three", b"four"):
        queue.put(line)
        queue.flush()
        healthy.append(queue.is_healthy)
    queue.close()

    assert batches == [([b"one"], 0), ([b"two"], 1), ([b"three"], 3), ([b"four"], 0)]
    assert healthy == [False, False, True, True]


@pytest.mark.parametrize(("unwritten", "lost"), [([1], [0, 1]), ([1, 1], [0, 1]), ([0], [0])])
def test_close_reports_lines_that_could_not_be_written(unwritten: list[int], lost: list[int]):
    """It tries once, even if the last batch failed."""
    write, batches = full_disk(unwritten)
    queue = LineQueue(write)
    queue.put(b"last")

    assert queue.close()
    assert [count for _, count in batches] == lost


def test_close_gives_up_a_write_that_blocks():
    """It returns False, because the thread may still write and its file must stay open."""
    writer = BlockedWriter()
    queue = LineQueue(writer)
    queue.put(b"first")
    assert writer.started.wait()
    given_up = queue.close(timeout_s=0.01)
    writer.release.set()

    assert (given_up, queue.close()) == (False, True)


def test_a_write_that_blocks_forever_does_not_keep_the_process_alive():
    """The thread is a daemon."""
    program = (
        "import threading\n"
        "from proxy.telemetry.files import LineQueue\n"
        "started = threading.Event()\n"
        "def write(lines, lost):\n"
        "    started.set()\n"
        "    threading.Event().wait()\n"
        "queue = LineQueue(write)\n"
        "queue.put(b'first')\n"
        "started.wait()\n"
        "print(queue.close(timeout_s=0.01))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)

    assert (done.stdout, done.stderr) == (b"False\n", b"")


def test_flush_and_close_wait_for_no_more_lines():
    """After many lines the thread collects for long, but not while the queue is flushed or closed."""
    batches: list[int] = []

    def write(lines: list[bytes], _lost: int) -> int:
        batches.append(len(lines))
        return 0

    queue = LineQueue(write, longest_delay_s=TIMEOUT_S)
    with fail_if_stuck():
        for count in (MANY_LINES, 1, MANY_LINES):
            for _ in range(count):
                queue.put(b"line")
            assert queue.flush(TIMEOUT_S)
        queue.put(b"line")
        assert queue.close(TIMEOUT_S)

    assert sum(batches) == 2 * MANY_LINES + 2
    assert queue.flush()


class LoggingFinalizer:
    """Is in a cycle, so that the garbage collector finalizes it, and puts a line into a queue then."""

    def __init__(self, queue: LineQueue) -> None:
        self.queue = queue
        self.cycle = self

    def __del__(self) -> None:
        self.queue.put(b"finalized")


@pytest.mark.parametrize("threads", [1, 4])
def test_a_finalizer_may_log_in_the_middle_of_anything(threads: int):
    """The collector runs at any allocation, those of the queue included. No line is lost, and nothing waits forever."""
    written: Counter[bytes] = Counter()
    queue = LineQueue(lambda lines, _lost: written.update(lines) or 0)
    thresholds = gc.get_threshold()

    def put_lines() -> None:
        for number in range(2000):
            LoggingFinalizer(queue)
            queue.put(b"put")
            if number % 500 == 0:
                assert queue.flush(TIMEOUT_S)

    putting = [threading.Thread(target=put_lines, daemon=True) for _ in range(threads)]
    with fail_if_stuck():
        gc.set_threshold(1, 1, 1)
        try:
            for each in putting:
                each.start()
            for each in putting:
                each.join()
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        assert queue.close(TIMEOUT_S)

    assert written == {b"put": 2000 * threads, b"finalized": 2000 * threads}


def test_a_queue_that_was_never_used_closes():
    """It writes nothing."""
    write, batches = full_disk([])

    assert LineQueue(write).close()
    assert batches == []


@given(
    lines=st.lists(st.binary(max_size=9).map(bytes.hex).map(str.encode), min_size=1, max_size=6),
    room=st.integers(0, 60),
)
def test_lines_are_appended_whole_as_far_as_there_is_room(lines: list[bytes], room: int):
    """The part of a line that fits on a full disk is removed, and the next line follows the last complete one."""
    ends = [*accumulate(len(line) + 1 for line in lines)]
    fitting = sum(end <= room for end in ends)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        with open_private(path) as file:
            append_lines(file, [b"first"])
            with disk_full_at(path.stat().st_size + room):
                appended = 0
                with suppress(OSError):
                    appended = append_lines(file, lines)
            append_lines(file, [b"last"])
        written = path.read_bytes()

    assert appended == fitting
    assert written == b"\n".join([b"first", *lines[:fitting], b"last", b""])


def test_no_room_for_a_line_is_an_error(tmp_path: Path):
    """It says why, whether a part would have fitted or nothing."""
    with open_private(tmp_path / "lines") as file:
        for room in (0, 1, 5):
            with disk_full_at(room), pytest.raises(OSError, match=r"No space left|too large"):
                append_lines(file, [b"second"])


def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path):
    """A file that exists keeps its content and its mode."""
    path = tmp_path / "lines"
    open_private(path).close()
    created = path.stat().st_mode & 0o777
    path.chmod(0o640)
    path.write_bytes(b"first\n")
    with open_private(path) as file:
        append_lines(file, [b"second"])

    assert (created, path.stat().st_mode & 0o777) == (0o600, 0o640)
    assert path.read_bytes() == b"first\nsecond\n"
