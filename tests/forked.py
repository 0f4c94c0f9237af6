"""Processes that run a command of the gateway, forked from one that has imported it: see `fork_server.py`.

For what a start itself shows (its memory, flags of Python, the environment of imports) use `asyncio.subprocess`.
"""

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Output(NamedTuple):
    """An output of a process that the test reads."""

    reader: asyncio.StreamReader
    transport: asyncio.BaseTransport


class ForkedProcess:
    """A running command, with what the tests use of `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, stdout: Output | None, stderr: Output | None, status: int) -> None:
        self.pid = pid
        self.stdout = stdout and stdout.reader
        self.stderr = stderr and stderr.reader
        self.returncode: int | None = None
        self._transports = [output.transport for output in (stdout, stderr) if output is not None]
        self._status = status
        self._has_ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(status, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        self.returncode = int(os.read(self._status, 16))
        os.close(self._status)
        self._has_ended.set()

    async def wait(self) -> int:
        await self._has_ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def communicate(self) -> tuple[bytes | None, bytes | None]:
        """Read what is left of the outputs that are pipes, and wait for the end."""
        out, error = await asyncio.gather(_rest(self.stdout), _rest(self.stderr))
        await self.wait()
        return out, error

    def close(self) -> None:
        """Read no more of the outputs."""
        for transport in self._transports:
            transport.close()

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def start_proxy(
    *arguments: str, stdout: int = PIPE, stderr: int = DEVNULL, env: Mapping[str, str] | None = None
) -> ForkedProcess:
    """Start `python -m proxy` with these arguments in the repository's folder. Outputs are PIPE, DEVNULL or a file's."""
    (read_out, out), (read_error, error) = _open(stdout), _open(stderr)
    status, report = os.pipe()
    order = {"arguments": arguments, "environment": {**(os.environ if env is None else env)}}
    pid = _ask(json.dumps(order).encode(), [out, error, report])
    for each, given in ((out, stdout), (error, stderr), (report, PIPE)):
        if each != given:
            os.close(each)
    return ForkedProcess(pid, await _read(read_out), await _read(read_error), status)


def _open(output: int) -> tuple[int | None, int]:
    """Return what an output is read from, if it is, and what the process writes to."""
    if output == PIPE:
        return os.pipe()
    return None, os.open(os.devnull, os.O_WRONLY) if output == DEVNULL else output


async def _read(descriptor: int | None) -> Output | None:
    if descriptor is None:
        return None
    reader = asyncio.StreamReader(limit=2**24)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return Output(reader, transport)


async def _rest(output: asyncio.StreamReader | None) -> bytes | None:
    return None if output is None else await output.read()


def _ask(message: bytes, descriptors: list[int]) -> int:
    """Return the process that the server has forked."""
    connection = _connection()
    socket.send_fds(connection, [message], descriptors)
    return int(connection.recv(16))


@cache
def _connection() -> socket.socket:
    """The connection to the server of this process, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
    server = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()

    def close() -> None:
        ours.close()
        server.wait()

    atexit.register(close)
    return ours
