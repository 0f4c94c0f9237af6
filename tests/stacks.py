"""`headgate` as a process that can say what it is doing: `python -m tests.stacks serve ...`.

SIGUSR1 makes it write the stacks of its threads and of its asyncio tasks to stderr, the first also if it is stuck.
"""

import asyncio
import faulthandler
import os
import signal
import sys
from typing import Any

from proxy.__main__ import main

STACKS_S = 3.0
"""How long a process may take to write its stacks, in seconds."""


def print_tasks(*_: Any) -> None:
    """Write the stack of each task to stderr, past what the gateway writes there."""
    with os.fdopen(os.dup(2), "w") as stderr:
        for task in asyncio.all_tasks():
            task.print_stack(file=stderr)


async def explain(process: asyncio.subprocess.Process, reading: "asyncio.Task[bytes]") -> str:
    """Return what a process that does not end has written to stderr, with its stacks, and kill it.

    `reading` reads its stderr.
    """
    process.send_signal(signal.SIGUSR1)
    await asyncio.wait([reading], timeout=STACKS_S)
    process.kill()
    return (await reading).decode(errors="replace")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, print_tasks)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
    sys.exit(main())
