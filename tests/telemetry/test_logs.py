"""Log lines go to stderr if they can be written, and cause no delay if they cannot."""

import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from proxy.telemetry.files import QUEUE_BYTES
from proxy.telemetry.logs import PART_BYTES, LogTally, configure_logs
from tests.conftest import StartGateway
from tests.full_disk import disk_full_at
from tests.timeouts import fail_if_stuck

CALL = {
    "request_id": "req_1", "method": "POST", "path": "/v1/responses", "caller": "anna", "model": "gpt-5", "status": 200,
    "backend": "openai", "cache": "miss", "input_tokens": 5, "output_tokens": 7, "cost_usd": 0.00007625,
    "duration_ms": 812.4,
}  # fmt: skip
ROOT = Path(__file__).parent.parent.parent
PROGRAM = (
    "import logging, structlog; from proxy.telemetry.logs import configure_logs\n"
    "close = configure_logs(console={console}, final={final}).close\n"
    "for n in range(500): structlog.get_logger().info('noun.happened', number=n)\n"
    "logging.getLogger('lib').warning('it broke')\n"
    "close()\n"
    "print('done')"
)
FINAL = pytest.mark.parametrize("final", [False, True], ids=["direct", "queued"])


def lines_of(program: str) -> list[dict[str, Any]]:
    """Return the log lines of a program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return [orjson.loads(line) for line in done.stderr.splitlines()]


class UnreadPipe:
    """A pipe as stderr that is not read until `read_all`."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w")

    def read_all(self, close: Any) -> list[dict[str, Any]]:
        """Return the lines that are written until the logs are closed."""
        parts: list[bytes] = []

        def read() -> None:
            with os.fdopen(self._reader, "rb") as reader:
                parts.append(reader.read())

        thread = threading.Thread(target=read)
        thread.start()
        close()
        self.stream.close()
        thread.join()
        return [orjson.loads(line) for line in parts[0].splitlines()]


@FINAL
def test_logs_are_json_lines_on_stderr(final: bool):
    """A terminal gets readable lines instead."""
    lines = lines_of(
        "import structlog; from proxy.telemetry.logs import configure_logs\n"
        f"close = configure_logs(final={final}).close\n"
        "structlog.get_logger().info('noun.happened', key=1)\n"
        "structlog.get_logger().debug('detail.happened')\n"
        "close()\n"
    )

    assert [(line["event"], line["level"], line["key"]) for line in lines] == [("noun.happened", "info", 1)]
    assert next(iter(lines[0])) == "timestamp"


@pytest.mark.parametrize("console", [False, True])
def test_an_unknown_field_is_left_out(console: bool):
    """In both formats."""
    script = (
        "import structlog; from proxy.telemetry.logs import configure_logs\n"
        f"configure_logs(console={console}, final=False)\n"
        "structlog.get_logger().warning('noun.happened', key=0, cause=None)\n"
    )
    written = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stderr

    assert b"key" in written
    assert b"cause" not in written


@FINAL
def test_warnings_of_libraries_are_logged_without_tracebacks(monkeypatch: pytest.MonkeyPatch, final: bool):
    """A traceback, or the message of an exception, could contain data of a caller. A message is cut after its first
    line and after 200 characters, and is kept if its arguments do not fit its format.
    """
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written))
    tally = LogTally()
    close = configure_logs(console=False, final=final, tally=tally).close
    library = logging.getLogger("lib")
    try:
        int("a secret")
    except ValueError:
        library.exception("it %s", "broke")
    library.warning("%d broke", "it")
    library.warning("x" * 1000)
    library.warning("it failed: %s", ValueError("a secret"))
    library.warning(ValueError("a secret"))
    library.warning("a task failed\nfuture: <Task exception=ValueError('a secret')>")
    library.warning("%(what)s \x1b[31m", {"what": "red"})
    library.info("unimportant")
    close()
    lines = [orjson.loads(line) for line in written.getvalue().splitlines()]

    assert [(line["event"], line["logger"], line["message"], line.get("error")) for line in lines] == [
        ("library.warned", "lib", "it broke", "ValueError"),
        ("library.warned", "lib", "%d broke", None),
        ("library.warned", "lib", "x" * 200, None),
        ("library.warned", "lib", "it failed: ValueError", None),
        ("library.warned", "lib", "ValueError", None),
        ("library.warned", "lib", "a task failed", None),
        ("library.warned", "lib", "red \\x1b[31m", None),
    ]
    assert b"secret" not in written.getvalue()
    assert tally.events == {("library.warned", "warning"): 7}


@FINAL
def test_a_crash_is_one_json_line_with_its_type_and_frames(monkeypatch: pytest.MonkeyPatch, final: bool):
    """It has neither local variables nor messages: a message may quote a caller or an upstream."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written))
    close = configure_logs(console=False, final=final).close
    prompt = "a secret"
    try:
        int(prompt)
    except ValueError:
        structlog.get_logger().exception("request.crashed")
    close()
    (line,) = [orjson.loads(line) for line in written.getvalue().splitlines()]

    assert (line["event"], line["level"]) == ("request.crashed", "error")
    assert line["exception"].startswith("ValueError\n  tests/telemetry/test_logs.py:")
    assert prompt not in str(line)


@FINAL
def test_a_terminal_gets_readable_lines(monkeypatch: pytest.MonkeyPatch, final: bool):
    """They are text instead of JSON; a character that cannot be encoded is escaped."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(screen))
    close = configure_logs(console=True, final=final).close
    structlog.get_logger().info("noun.happened", key="\ud800")
    structlog.get_logger().info("request.finished", **CALL)
    structlog.get_logger().info("background.finished", status=502, code="upstream_cut", request_id="req_2")
    close()
    plain = re.sub(r"\x1b\[\d+m", "", screen.getvalue().decode())
    lines = re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", plain).splitlines()

    assert "noun.happened" in lines[0]
    assert lines[1:] == [
        "200 POST /v1/responses anna gpt-5 > openai 812 ms 5+7 tokens $0.000076 cache miss req_1",
        "502 background.finished upstream_cut req_2",
    ]
    assert b"{" not in screen.getvalue()


@FINAL
@pytest.mark.parametrize("name", ["json", "text", "auto"])
def test_the_config_chooses_the_format(monkeypatch: pytest.MonkeyPatch, final: bool, name: Any):
    """Whatever stderr is; "auto" is JSON where there is no terminal."""
    written, tally = io.BytesIO(), LogTally()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written))
    logs = configure_logs(final=final, tally=tally)
    logs.choose_format(name)
    structlog.get_logger().warning("noun.happened")
    logs.close()

    assert written.getvalue().startswith(b"{") == (name != "text")
    assert tally.events == {("noun.happened", "warning"): 1}


@FINAL
@pytest.mark.parametrize("console", [False, True])
@pytest.mark.parametrize(
    "redirection", ["2>/dev/full", "2>&3", "2>&-"], ids=["a full disk", "a broken pipe", "no stderr"]
)
def test_a_line_that_cannot_be_written_is_dropped(redirection: str, console: bool, final: bool):
    """No exception is raised, even when the process ends."""
    reader, writer = os.pipe()
    os.close(reader)
    program = PROGRAM.format(console=console, final=final)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(
            ["sh", "-c", f'exec 3>&0; exec "$0" -c "$1" {redirection}', sys.executable, program],
            stdin=broken,
            stdout=subprocess.PIPE,
            check=False,
        )

    assert (done.returncode, done.stdout) == (0, b"done\n")


@FINAL
def test_a_stderr_that_is_closed_later_is_no_error(monkeypatch: pytest.MonkeyPatch, final: bool):
    """Python raises ValueError for it instead of OSError."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stderr", stream)
    close = configure_logs(console=False, final=final).close
    stream.close()
    structlog.get_logger().info("noun.happened")
    close()


def test_a_partially_written_line_damages_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next log line starts on a new line, and a dropped line is not written later."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs(console=False)
        log = structlog.get_logger()
        log.info("first.happened")
        with disk_full_at(path.stat().st_size + 10):
            log.info("torn.happened")
            log.info("lost.happened")
        log.info("next.happened")
        log.info("last.happened")
    first, torn, *later = path.read_bytes().splitlines()

    assert [orjson.loads(line)["event"] for line in (first, *later)] == [
        "first.happened",
        "next.happened",
        "last.happened",
    ]
    assert len(torn) == 10


def test_queued_lines_that_a_full_disk_refuses_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next line that can be written has their number, which includes a partially written line."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        tally = LogTally()
        logs = configure_logs(console=False, final=True, tally=tally)
        log = structlog.get_logger()
        with disk_full_at(10):
            for number in range(20):
                log.info("noun.happened", number=number)
            with fail_if_stuck():
                while not logs.flush():  # the disk has room again only when all lines were refused
                    pass
        log.info("last.happened")
        logs.close()
    torn, *lines = path.read_bytes().splitlines()
    parsed = [orjson.loads(line) for line in lines]
    written = [line for line in parsed if line["event"] == "noun.happened"]
    reports = [line for line in parsed if line["event"] == "log.lines_lost"]

    assert len(torn) == 10
    assert written == []
    assert [(report["level"], report["count"]) for report in reports] == [("warning", 20)]
    assert tally.losses["log"]() == 20
    assert parsed[-1]["event"] == "last.happened"


def test_a_pipe_without_a_reader_causes_no_delay_and_lost_lines_are_counted(monkeypatch: pytest.MonkeyPatch):
    """Lines wait up to a limit; when the pipe is read again, a line has the number of missing ones."""
    pipe = UnreadPipe()
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    close = configure_logs(console=False, final=True).close
    log = structlog.get_logger()
    count = 2 * QUEUE_BYTES // 100_000
    with fail_if_stuck():
        for _ in range(count):
            log.info("noun.happened", text="x" * 100_000)
        lines = pipe.read_all(close)
    lost = [line["count"] for line in lines if line["event"] == "log.lines_lost"]  # a busy machine loses some twice

    assert lost
    assert min(lost) > 0
    assert len(lines) - len(lost) + sum(lost) == count


def test_a_pipe_that_does_not_block_loses_no_line(monkeypatch: pytest.MonkeyPatch):
    """Another process may have made it so; lines wait until it is read."""
    pipe = UnreadPipe()
    os.set_blocking(pipe.stream.fileno(), False)
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    logs = configure_logs(console=False, final=True)
    for number in range(40):
        structlog.get_logger().info("noun.happened", number=number, text="x" * 10_000)
    lines = pipe.read_all(logs.close)

    assert [line["number"] for line in lines] == [*range(40)]


def test_closing_the_logs_of_a_pipe_without_a_reader_gives_up(monkeypatch: pytest.MonkeyPatch):
    """The writing thread remains and ends when the pipe is read."""
    pipe = UnreadPipe()
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    close = configure_logs(console=False, final=True).close
    structlog.get_logger().info("noun.happened", text="x" * 1_000_000)
    with fail_if_stuck():
        close()
        lines = pipe.read_all(close)

    assert [line["event"] for line in lines] == ["noun.happened"]


@FINAL
async def test_a_crash_on_a_terminal_prints_no_values(
    start_gateway: StartGateway, http, monkeypatch: pytest.MonkeyPatch, final: bool
):
    """It prints type and frames, no message and no local variables: these contain prompts and keys."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(screen))
    close = configure_logs(console=True, final=final).close
    key = "key-of-anna"
    gateway = await start_gateway({
        "caller": [{"name": "anna", "key_sha256": hashlib.sha256(key.encode()).hexdigest()}],
        "backend": [{"use": "tests.crashing_backend", "name": "faulty"}],
        "route": [{"model": "*", "backend": "faulty"}],
    })  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    async with http.post(
        f"{gateway}/v1/responses", json={"model": "m", "input": "a prompt"}, headers=headers
    ) as answer:
        await answer.read()
    close()
    printed = screen.getvalue().decode()

    assert answer.status == 500
    assert "request.crashed" in printed
    assert "RuntimeError\n  " in printed
    assert "crashing_backend.py:" in printed
    assert [text for text in ("a prompt", key, "1234") if text in printed] == []


@pytest.mark.parametrize("console", [False, True])
def test_no_part_of_a_line_has_a_key(console: bool):
    """Neither in what a value contains, nor with characters that JSON escapes."""
    program = f"""
import structlog
from pathlib import Path
from proxy.telemetry.logs import configure_logs
from proxy.wire.key_patterns import KEYS

KEYS.remember('a"known\\\\key-ZQX')
close = configure_logs(console={console}).close
keys = ['a"known\\\\key-ZQX', 'sk-abcdefghijkl-ZQX']
for key in keys:
    for value in (key, [key], [[key]], (key,), {{'a': {{'b': key}}}}, ValueError(key), Path('/tmp') / key):
        structlog.get_logger().info('noun.happened', value=value, number=7)
close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    lines = done.stderr.splitlines()

    assert [line for line in lines if b"ZQX" in line] == []
    assert [line.count(b"[redacted]") for line in lines] == [1] * 14
    assert console or [orjson.loads(line)["number"] for line in lines] == [7] * 14


class RecordedWrites(io.RawIOBase):
    """A file that records what is written to it at a time."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.written.append(bytes(data))
        return len(data)


def test_many_lines_are_written_in_parts(monkeypatch: pytest.MonkeyPatch):
    """Each of whole lines, and of a size for which no memory is mapped; a line that is longer is written alone."""
    raw = RecordedWrites()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(raw)))
    tally = LogTally()
    logs = configure_logs(console=False, final=True, tally=tally)
    lines = [b"%d" % number * size for number, size in enumerate((9, PART_BYTES // 2, PART_BYTES // 2, 300_000, 9, 9))]
    assert tally.put_lines is not None
    for line in lines:
        tally.put_lines(line)
    logs.close()

    assert b"".join(raw.written) == b"\n".join([*lines, b""])
    assert all(part.endswith(b"\n") for part in raw.written)
    assert all(len(part) <= PART_BYTES or part.count(b"\n") == 1 for part in raw.written)
