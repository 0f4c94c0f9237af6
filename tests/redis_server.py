"""A real redis-server that a test can stop, pause and start again."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError if it does not become true."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError("Redis did not become ready")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


PLAIN = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
"""Nothing is written to a disk, and a replica does not wait for others that may come, which takes 5 seconds."""


class RedisServer:
    """A redis-server on a free port that writes nothing to disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        """`options` are those of its command line, or its config file and "--sentinel"."""
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "redis-server",
                *self._options,
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                *([] if "--sentinel" in self._options else PLAIN),
            ],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._is_listening)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Make the server accept connections without answering."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
