"""The gateway's process: `headgate serve`, with limits on open files and file sizes, and a count of its asyncio tasks.

For each byte on stdin it writes one line to stdout: `tasks 7`. Run: `python -m tests.soak.served CONFIG FILES BYTES`,
where 0 is no limit.
"""

import asyncio
import gc
import os
import resource
import sys
import threading

from proxy.__main__ import main


def count_tasks() -> int:
    """Return the number of tasks that are not done."""
    return sum(isinstance(found, asyncio.Task) and not found.done() for found in gc.get_objects())


def report_tasks() -> None:
    """Answer requests for the count until stdin ends. `os.read` holds no lock that would block the process's exit."""
    while os.read(0, 1):
        os.write(1, b"tasks %d\n" % count_tasks())


def limit(kind: int, value: int) -> None:
    """Set a soft limit of this process. The hard one stays, so that the parent can lift it again."""
    if value:
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    config, files, file_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    limit(resource.RLIMIT_NOFILE, files)
    limit(resource.RLIMIT_FSIZE, file_bytes)
    threading.Thread(target=report_tasks, daemon=True).start()
    sys.exit(main(["serve", "--config", config]))
