"""Forks a process for each message: it has imported the gateway, so that a start takes 0.05 s of CPU instead of 0.4.

What is forked is a process as `python -m proxy` starts one, with arguments, an environment and outputs of its own.
`forked.py` sends the messages.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from proxy.__main__ import main

MAX_MESSAGE_BYTES = 262_144


def serve(connection: socket.socket) -> list[str] | None:
    """Fork until the connection ends, and report how the processes end; in each of them return its arguments."""
    woken, waking = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    reports: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report_ended(reports)
        if connection in ready:
            message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 3)
            if not message:
                return None
            process = os.fork()
            if process == 0:
                connection.detach()
                order = json.loads(message)
                become(order["environment"], descriptors[:2])
                return [*order["arguments"]]
            *outputs, reports[process] = descriptors
            for output in outputs:
                os.close(output)
            connection.send(str(process).encode())


def report_ended(reports: dict[int, int]) -> None:
    """Report the exit status of each process that has ended, in the form of `subprocess`, where it is waited for."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            report = reports.pop(ended[0])
            with suppress(BrokenPipeError):
                os.write(report, str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(report)


def become(environment: Mapping[str, str], outputs: Sequence[int]) -> None:
    """Take over the environment and the outputs, and leave nothing of the server."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    gc.disable()  # as `python -m proxy` does while it imports
    from proxy.commands import command_line
    from proxy.commands import serve as serve_command

    assert command_line, serve_command  # these imports are most of a start
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a fork has only one of the threads of its parent"
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv[1:] = arguments
        sys.exit(main())
