"""Records of jobs for other processes: whether a job waits or runs, and in which process."""

from contextlib import suppress
from typing import NamedTuple

from proxy.context import Context
from proxy.state.jobs import BackgroundJob
from proxy.state.records import TeamRecords
from proxy.stores import Store
from proxy.wire.errors import Unavailable

KIND = "background"
LOST = "lost"
"""The status of a job that another process has ended, because its own was taken for dead."""


class JobRecord(NamedTuple):
    status: str
    process: str


class JobRecords:
    """The records of jobs. Those of this process name it."""

    def __init__(self, store: Store, ttl_s: float, process: str) -> None:
        self._records = TeamRecords(store, ttl_s)
        self._process = process

    async def note(self, job: BackgroundJob) -> None:
        """Write the status of a job of this process. Raises StoreError."""
        value = {"status": job.status, "process": self._process}
        await self._records.put(KIND, job.stored.id, value, job.context)

    async def note_lost(self, response_id: str, context: Context) -> None:
        """Record that this process has ended a job, for the process that may still work on it. Raises StoreError."""
        await self._records.put(KIND, response_id, {"status": LOST, "process": self._process}, context)

    async def find(self, response_id: str, context: Context) -> JobRecord | None:
        """Return the record of a job; None if it has ended. Raises Unavailable."""
        record = await self._records.get(KIND, response_id, context)
        return None if record is None else JobRecord(record.value["status"], record.value["process"])

    async def delete(self, job: BackgroundJob) -> None:
        """Delete the record of a job that has ended. If the store fails, it expires."""
        with suppress(Unavailable):
            await self._records.delete(KIND, job.stored.id, job.context)
