"""A real redis-server that a test can stop, pause and start again."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis


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

    def __init__(self, folder: Path, *options: str, certificate: Path | None = None) -> None:
        """`options` are those of its command line, or its config file and "--sentinel".

        With a certificate, whose key is beside it, it only speaks TLS.
        """
        self._folder = folder
        self._options = options
        self._certificate = certificate
        self.port = free_port()
        self.url = (
            f"redis://127.0.0.1:{self.port}/0"
            if certificate is None
            else f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={certificate}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "redis-server",
                *self._options,
                *self._listening(),
                "--bind",
                "127.0.0.1",
                *([] if "--sentinel" in self._options else PLAIN),
            ],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._is_listening)

    def _listening(self) -> list[str]:
        if self._certificate is None:
            return ["--port", str(self.port)]
        files = {"cert": self._certificate, "key": self._certificate.with_suffix(".key"), "ca-cert": self._certificate}
        options = [word for name, path in files.items() for word in (f"--tls-{name}-file", str(path))]
        return ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", *options]

    def client(self) -> redis.Redis:
        """Return a client of it."""
        if self._certificate is None:
            return redis.Redis(port=self.port)
        return redis.Redis(port=self.port, host="127.0.0.1", ssl=True, ssl_ca_certs=str(self._certificate))

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
