"""What a process survives before it serves: a hang-up, Ctrl-C, and standard streams that are closed or take nothing."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import CANNED
from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def starting(
    folder: Path, redirected: str = ">stdout 2>stderr", *, before: str = "", **server: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a gateway in a folder, by a shell that redirects its streams and runs something else before."""
    keys = "\n".join(f"{key} = {value}" for key, value in server.items())
    (folder / "gateway.toml").write_text(f"[server]\n{keys}\n[state]\nuse = 'sqlite'\npath = 'state.db'\n{CANNED}")
    command = f'cd {folder}; export PYTHONPATH="{ROOT}"; exec "{sys.executable}" -m proxy serve --config gateway.toml'
    with subprocess.Popen(["sh", "-c", f"{before} {command} {redirected}"]) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait for something that a process does. Raises AssertionError if it ends before, or takes too long."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def catches_hang_ups(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has a handler for SIGHUP, which is the first thing that the gateway sets."""
    caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> signal.SIGHUP - 1 & 1)


def serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def logged(folder: Path) -> list[str]:
    """Return the events in the log, which is there soon."""
    path = folder / "stderr"
    written = path.read_bytes() if path.exists() else b""
    return [orjson.loads(line)["event"] for line in written[: written.rfind(b"\n") + 1].splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_up_before_it_serves_is_a_reload_afterwards(tmp_path: Path, workers: int):
    """systemd sends one when it reloads a unit that has just been started."""
    port = free_port()
    with starting(tmp_path, port=port, workers=workers) as process:
        wait_for(lambda: catches_hang_ups(process), process)
        process.send_signal(signal.SIGHUP)
        assert "server.started" not in logged(tmp_path)
        wait_for(lambda: "config.reloaded" in logged(tmp_path), process)
        assert serves(port)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_ignores_hang_ups_says_so(tmp_path: Path, workers: int):
    """An operator would wait for a reload that never comes."""
    with starting(tmp_path, ">stdout 2>stderr", before="trap '' HUP;", port=0, workers=workers) as process:
        wait_for(lambda: "server.started" in logged(tmp_path), process)
        process.send_signal(signal.SIGHUP)

        assert "server.hang_ups_ignored" in logged(tmp_path)
        assert process.poll() is None


def test_ctrl_c_before_it_serves_ends_it_without_a_traceback(tmp_path: Path):
    """The status is that of an interrupted command."""
    with starting(tmp_path, port=0) as process:
        wait_for(lambda: catches_hang_ups(process), process)
        process.send_signal(signal.SIGINT)
        status = process.wait(TIMEOUT_S)

    assert status in (0, 130)  # 0 if it served by then
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_ctrl_c_in_a_destructor_ends_a_start():
    """Python ignores a KeyboardInterrupt there, and the gateway would serve after Ctrl-C."""
    program = """
import os, signal
from proxy.early_start import exit_on_interrupt
class Interrupting:
    def __del__(self): os.kill(os.getpid(), signal.SIGINT)
exit_on_interrupt()
Interrupting()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("redirected", [">/dev/full 2>stderr", "<&- >&- 2>&-"])
def test_a_stream_that_takes_nothing_does_not_keep_it_from_serving(tmp_path: Path, redirected: str):
    """Nothing that it prints is worth an outage."""
    port = free_port()
    with starting(tmp_path, redirected, port=port) as process:
        wait_for(lambda: serves(port), process)
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_another_python_is_asked_for_if_it_is_too_old(tmp_path: Path):
    """Nothing is set up that would have to be removed first."""
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.4 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", f"PYTHON={old}", "setup"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert f"Headgate needs Python 3.11 or later. {old} is Python 3.10.4" in done.stderr
    assert not (tmp_path / ".venv").exists()
