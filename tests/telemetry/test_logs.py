"""Logs go to stderr as long as it takes them, and no longer."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import structlog

from proxy.telemetry.logs import write_logs
from tests.logs import isolated_logs
from tests.room import disk_full_at

PROGRAM = (
    "import logging, structlog; from proxy.telemetry.logs import write_logs; write_logs(console={console})\n"
    "for n in range(500): structlog.get_logger().info('noun.happened', number=n)\n"
    "logging.getLogger('lib').warning('it broke')\n"
    "print('done')"
)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """What a test configures is over with it."""
    with isolated_logs():
        yield


def test_logs_are_json_lines_on_stderr():
    """What is not a terminal gets one JSON object a line; warnings of libraries join, without their tracebacks."""
    program = (
        "import logging, structlog; from proxy.telemetry.logs import write_logs; write_logs(console=False)\n"
        "structlog.get_logger().info('noun.happened', key=1)\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('lib').warning('it %s', 'broke', exc_info=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    lines = [orjson.loads(line) for line in done.stderr.splitlines()]

    assert [(line["event"], line["level"]) for line in lines] == [
        ("noun.happened", "info"),
        ("library.warned", "warning"),
    ]
    assert (lines[1]["message"], lines[1]["error"]) == ("it broke", "ZeroDivisionError")


def test_a_terminal_gets_lines_for_people(monkeypatch):
    """On a terminal a line reads from left to right."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(screen))
    write_logs(console=True)
    structlog.get_logger().info("noun.happened", key="\ud800")

    assert b"noun.happened" in screen.getvalue()
    assert b"{" not in screen.getvalue()


@pytest.mark.parametrize("console", [False, True])
@pytest.mark.parametrize("opened", ["2>/dev/full", "2>&3", "2>&-"], ids=["a full disk", "a broken pipe", "no stderr"])
def test_a_line_that_cannot_be_written_is_dropped(opened: str, console: bool):
    """Nothing is raised, not even when the process ends."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(
            ["sh", "-c", f'exec 3>&0; exec "$0" -c "$1" {opened}', sys.executable, PROGRAM.format(console=console)],
            stdin=broken,
            stdout=subprocess.PIPE,
            check=False,
        )

    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_stderr_that_is_closed_later_is_no_error(monkeypatch):
    """Python says ValueError of it, not OSError."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stderr", stream)
    write_logs(console=False)
    stream.close()
    structlog.get_logger().info("noun.happened")


def test_a_torn_line_spoils_no_other(tmp_path: Path, monkeypatch):
    """Of what the room ends within, a part is there; the next line is whole all the same, and nothing comes late."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        write_logs(console=False)
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


def test_a_librarys_slip_in_its_words_is_told_as_it_is():
    """Its template names a number, and it gives a text: the line is told without it, and nothing is raised."""
    program = (
        "import logging; from proxy.telemetry.logs import write_logs; write_logs(console=False)\n"
        "logging.getLogger('lib').warning('%d broke', 'it')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert [orjson.loads(line)["message"] for line in done.stderr.splitlines()] == ["%d broke"]
