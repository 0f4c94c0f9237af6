"""The gateway's process: `headgate serve`, with limits on open files and file sizes, and a count of its asyncio tasks.

For each byte on stdin it writes one line to stdout: `tasks 7 kept 1000 of 5000`, in bytes of its stores in memory. Run:
`python -m tests.soak.served CONFIG FILES BYTES`, where 0 is no limit.
"""

import asyncio
import gc
import os
import resource
import sys
import threading

from proxy.__main__ import main
from proxy.stores.memory import MemoryStore


def report() -> bytes:
    """Return the number of tasks that are not done, and what stores in memory keep and may keep."""
    objects = gc.get_objects()
    tasks = sum(isinstance(found, asyncio.Task) and not found.done() for found in objects)
    stores = [found for found in objects if isinstance(found, MemoryStore)]
    kept = sum(store._values.most_size + store._records.most_size for store in stores)
    allowed = sum(store.store_max_bytes + store.store_max_journal_bytes for store in stores)
    return b"tasks %d kept %d of %d\n" % (tasks, kept, allowed)


def answer_requests() -> None:
    """Answer requests for the report until stdin ends. `os.read` holds no lock that would block the process's exit."""
    while os.read(0, 1):
        os.write(1, report())


def limit(kind: int, value: int) -> None:
    """Set a soft limit of this process. The hard one stays, so that the parent can lift it again."""
    if value:
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    config, files, file_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    limit(resource.RLIMIT_NOFILE, files)
    limit(resource.RLIMIT_FSIZE, file_bytes)
    threading.Thread(target=answer_requests, daemon=True).start()
    sys.exit(main(["serve", "--config", config]))
