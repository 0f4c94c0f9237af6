"""Cancellations of background responses, passed to the process that does the work.

A flag says that a response is to be cancelled, and a bell tells the process to look at the flags of its jobs: so a
process reads one key at a time, however many jobs it has.
"""

import asyncio
from collections.abc import Mapping

import structlog

from proxy.context import Context
from proxy.state.job_records import JobRecords
from proxy.state.jobs import BackgroundJob, JobKeys
from proxy.state.journal import POLL_S
from proxy.state.journal_entries import JournalKey
from proxy.state.leases import Leases
from proxy.stores import Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

FLAG_TTL_S = 3600.0
"""How long a flag or a bell is kept that no process reads, in seconds."""


class Cancellations:
    """Cancels jobs: on requests made here, and on those of other processes for jobs of this one."""

    def __init__(
        self, store: Store, leases: Leases, records: JobRecords, jobs: Mapping[JournalKey, BackgroundJob]
    ) -> None:
        """`jobs` are those of this process."""
        self._store = store
        self._leases = leases
        self._records = records
        self._jobs = jobs
        self._watching: asyncio.Task[None] | None = None

    async def stop(self, response_id: str, context: Context) -> None:
        """Cancel a job, and return when it has ended. Raises StoreError, Unavailable."""
        keys = JobKeys.of(response_id, context)
        job = self._jobs.get(keys.journal)
        if job is not None:
            job.cancel("cancelled")
            await job.ended.wait()
            return
        record = await self._records.find(response_id, context)
        if record is not None:
            await self._store.put(keys.cancel, b"1", ttl_s=FLAG_TTL_S)
            await self._store.put(_bell(record.process), b"1", ttl_s=FLAG_TTL_S)
        await self._leases.wait_until_free(keys.lease, POLL_S)

    def watch(self) -> None:
        """Look for requests while there are jobs."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        is_failing = False
        while self._jobs:
            await asyncio.sleep(POLL_S)
            try:
                await self._look()
                is_failing = False
            except StoreError as error:
                if not is_failing:
                    log.warning("background.watch_failed", error=short_message(error))
                is_failing = True

    async def _look(self) -> None:
        """Cancel the flagged jobs, if the bell rang. Raises StoreError; the bell then rings again."""
        bell = _bell(self._leases.owner)
        if await self._store.get(bell) is None:
            return
        await self._store.delete(bell)  # first: a flag that is set from here on rings it again
        try:
            for job in [*self._jobs.values()]:
                if await self._store.get(job.keys.cancel) is not None:
                    job.cancel("cancelled")
        except StoreError:
            await self._store.put(bell, b"1", ttl_s=FLAG_TTL_S)
            raise


def _bell(process: str) -> str:
    return f"headgate:background-bell:{process}"
