"""Background responses of backends that keep no state: started, looked up, followed and cancelled.

A response is queued before its request is answered, and outlives the request. The process that answered the request
does the work and holds a lease on it; a request for a response whose lease has ended finds that it failed.

Source: https://platform.openai.com/docs/guides/background
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import orjson
import structlog

from proxy.config.schema import StateTable
from proxy.context import Context
from proxy.routing.routes import Route
from proxy.rules import Rules
from proxy.state.cancellations import Cancellations
from proxy.state.job_records import LOST, JobRecords
from proxy.state.job_runner import JobRunner
from proxy.state.jobs import BackgroundJob, JobKeys, OpenReply, check_memory, queue_response
from proxy.state.journal import Journals
from proxy.state.journal_entries import JournalKey
from proxy.state.leases import Leases
from proxy.state.lost_jobs import LostJobs, is_active
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.state.turns import Turns
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.event import Batch, Reply
from proxy.wire.large_json import dumps
from proxy.wire.loggable import short_message
from proxy.wire.refusals import invalid_type, out_of_range

log = structlog.get_logger()

POLL_AFTER_MS = 1000
"""The time after which a client should poll an unfinished response again, in milliseconds."""
CANCEL_S = 10.0
"""How long a cancellation waits for the process that does the work, in seconds."""
END_S = 1.0
"""How long before the end of a shutdown jobs are ended, in seconds: their last events can still be read."""
TOO_DEEP = "The request is nested too deeply for a response in the background, which is kept."
NOT_STREAMED = "This response cannot be streamed because it was not created with background=true."
LAST_WRITES_S = 5.0
"""How long the last writes of jobs may take at a shutdown, in seconds."""


class Background:
    """The background responses of a gateway."""

    def __init__(
        self, store: Store, journals: Journals, settings: StateTable, rules: Rules, responses: StoredResponses
    ) -> None:
        """`store` keeps the leases and records of jobs."""
        self._responses = responses
        self._journals = journals
        self._leases = Leases(store, settings.background_lease_s)
        self._records = JobRecords(store, settings.ttl_s, self._leases.owner)
        self._turns = Turns(settings.background_at_once, settings.background_jobs)
        self._lost = LostJobs(responses, self._journals, self._records)
        self._runner = JobRunner(rules, responses, self._turns, on_start=self._note_start, is_ours=self._is_ours)
        self._jobs: dict[JournalKey, BackgroundJob] = {}  # those of this process, by the key of their journal
        self._cancellations = Cancellations(store, self._leases, self._records, self._jobs)
        self._is_closing = False

    def takes(self, call: Call, route: Route) -> bool:
        """Return whether the gateway runs a call in the background. Raises RequestError; Unavailable at shutdown."""
        if call.operation != "create" or route.keeps_state:
            return False
        wanted, store = call.body.get("background"), call.body.get("store")
        if not isinstance(wanted, bool | None):
            raise invalid_type("background", "a boolean", wanted)
        if not wanted:
            return False
        if store is False:
            message = "background can only be used when `store` is true."
            raise RequestError(message, code="invalid_value", param="background")
        if self._is_closing:
            message = "The gateway is shutting down and starts no background responses."
            raise Unavailable(message, code="server_shutdown")
        return True

    async def reply(self, call: Call, whole: Call, route: Route, open_reply: OpenReply, context: Context) -> Reply:
        """Queue a response, and return it as it is now, or its events.

        What belongs to the call is then the job's. `whole` is the call with its history. Raises HeadgateError.
        """
        team = context.caller.team
        check_memory(self._jobs.values(), context)
        self._turns.enter(team)
        memory = context.memory  # of the request: that of the call is the job's from `_queue` on
        try:
            job = await self._queue(call, whole, route, open_reply, context)
        except BaseException:
            self._turns.leave(team)
            raise
        job.task = asyncio.create_task(self._run(job))
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not run its last ones either
        if call.is_stream:
            check = partial(self._is_running, job)
            return Reply(200, {}, batches=self._journals.follow(job.keys.journal, -1, check, memory, context.run))
        response = job.stored.response
        size = len(await context.encode(call))
        body = await context.run(size, dumps, response, size)
        return Reply(200, poll_header(job.stored), body=body, response=response)

    async def current(self, stored: StoredResponse, context: Context) -> StoredResponse:
        """Return a response as it is now. One whose process died fails now. Raises Unavailable."""
        if not is_active(stored):
            return stored
        keys = JobKeys.of(stored.id, context)
        if (job := self._jobs.get(keys.journal)) is not None:
            return _with_status(stored, job.status)
        try:
            owner = await self._leases.take_over(keys.lease)
            if owner is None:
                return await self._read_elsewhere(stored, context)
            try:
                # The lease stays taken: if its process is alive after all, the next renewal fails.
                return await self._lost.settle(stored, keys, context)
            except (StoreError, Unavailable):
                await self._leases.give_back(keys.lease, owner)
                raise
        except StoreError as error:
            raise _unavailable() from error

    async def _read_elsewhere(self, stored: StoredResponse, context: Context) -> StoredResponse:
        """Return a response that another process works on. Its job's record is deleted at the end."""
        record = await self._records.find(stored.id, context)
        if record is None:
            return await self._responses.get(stored.id, context) or stored
        return _with_status(stored, record.status)

    async def cancel(self, stored: StoredResponse, context: Context) -> StoredResponse:
        """Cancel a response, and return it as it is then; one that has ended stays as it is.

        Raises RequestError for one that is not in the background, Unavailable.
        """
        if not stored.response.get("background"):
            raise RequestError("Cannot cancel a synchronous response.")
        stored = await self.current(stored, context)
        if not is_active(stored):
            return stored
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._cancellations.stop(stored.id, context)
        except TimeoutError as error:
            message = "The response was not cancelled in time; try again later."
            raise Unavailable(message, code="cancel_timeout") from error
        except StoreError as error:
            raise _unavailable() from error
        found = await self._responses.get(stored.id, context)
        return stored if found is None else await self.current(found, context)

    async def delete(self, stored: StoredResponse, context: Context) -> None:
        """Cancel a response that is running, and delete its events. Raises Unavailable."""
        if not stored.response.get("background"):
            return
        await self.cancel(stored, context)
        try:
            await self._journals.delete(JobKeys.of(stored.id, context).journal)
        except StoreError as error:
            raise _unavailable() from error

    async def replay(self, stored: StoredResponse, after: int | None, context: Context) -> AsyncIterator[Batch]:
        """Return the events of a response with sequence numbers greater than `after`, those to come included.

        Raises RequestError for a response whose events are not kept, Unavailable.
        """
        if not stored.response.get("background"):
            raise RequestError(NOT_STREAMED, param="stream")
        if after is not None and after < 0:
            raise out_of_range("starting_after", "integer_below_min_value", ">= 0", after)
        keys = JobKeys.of(stored.id, context)
        try:
            is_kept = await self._journals.exists(keys.journal)
        except StoreError as error:
            raise _unavailable() from error
        if not is_kept:
            age = self._journals.window_in_words
            raise RequestError(f"This response can no longer be streamed because it is more than {age} old.")
        check = partial(self._may_continue, stored.id, keys, context)
        return self._journals.follow(keys.journal, -1 if after is None else after, check, context.memory, context.run)

    async def close(self, drain_s: float) -> None:
        """Let jobs continue for a time, then end them as failed. No more are started."""
        self._is_closing = True
        await self._wait(max(drain_s - END_S, drain_s / 2))
        for job in [*self._jobs.values()]:
            job.shut_down()
        await self._wait(LAST_WRITES_S)
        for job in [*self._jobs.values()]:
            if job.task is not None:
                job.task.cancel()
        await self._wait(END_S)
        self._cancellations.close()

    async def _wait(self, timeout_s: float) -> None:
        """Wait for all current jobs."""
        if tasks := [job.task for job in self._jobs.values() if job.task is not None]:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _queue(
        self, call: Call, whole: Call, route: Route, open_reply: OpenReply, context: Context
    ) -> BackgroundJob:
        """Write a response as queued; return its job. Raises Unavailable, RequestError."""
        stored = queue_response(call, context)
        keys = JobKeys.of(stored.id, context)
        writer = self._journals.open(keys.journal, context.run, call_bytes=call.size_bytes)
        job = BackgroundJob(
            call,
            whole,
            partial(open_reply, route=route, context=context),
            context,
            stored=stored,
            keys=keys,
            writer=writer,
        )
        try:
            await self._leases.claim(keys.lease, partial(job.cancel, "lost"))
            await self._records.note(job)
            await self._responses.save(job.stored, context)
            context.target = route.targets[0].name
            await context.bind_response(call, job.stored.response)
            await writer.write(job.opening_events)
            await writer.flush()
        except BaseException as error:
            await self._leases.release(keys.lease)
            self._journals.forget(keys.journal)
            if isinstance(error, StoreError):
                raise _unavailable() from error
            if isinstance(error, orjson.JSONEncodeError):
                raise RequestError(TOO_DEEP, code="invalid_json") from error
            raise
        context.continue_in_background()
        context.transcript.add(job.opening_events)
        self._jobs[keys.journal] = job
        self._cancellations.watch()
        return job

    async def _run(self, job: BackgroundJob) -> None:
        try:
            await self._runner.run(job)
        finally:
            del self._jobs[job.keys.journal]
            self._turns.leave(job.context.caller.team)
            if job.stop != "lost":
                await self._records.delete(job)
            await self._leases.release(job.keys.lease)
            self._journals.forget(job.keys.journal)
            await job.report()

    async def _is_ours(self, job: BackgroundJob) -> bool:
        """Return whether no other process has ended a job. While the store fails, the job counts as ours."""
        if not await self._leases.confirm(job.keys.lease):
            return False
        try:
            record = await self._records.find(job.stored.id, job.context)
        except Unavailable:
            return True
        return record is None or record.status != LOST

    async def _note_start(self, job: BackgroundJob) -> None:
        """Record that a job runs. Until that is written, other processes see it as queued."""
        try:
            await self._records.note(job)
        except StoreError as error:
            log.warning("background.note_failed", request_id=job.context.request_id, error=short_message(error))

    async def _is_running(self, job: BackgroundJob) -> bool:
        return not job.ended.is_set()

    async def _may_continue(self, response_id: str, keys: JobKeys, context: Context) -> bool:
        """Return whether more events may come. A response whose process died fails now. Raises Unavailable."""
        try:
            if keys.journal in self._jobs or await self._leases.is_held(keys.lease):
                return True
        except StoreError as error:
            raise _unavailable() from error
        found = await self._responses.get(response_id, context)
        return found is not None and is_active(await self.current(found, context))


def poll_header(stored: StoredResponse) -> dict[str, str]:
    """Return the header that says when to ask for a response again; none if it has ended."""
    return {"openai-poll-after-ms": str(POLL_AFTER_MS)} if is_active(stored) else {}


def _with_status(stored: StoredResponse, status: str) -> StoredResponse:
    return replace(stored, response={**stored.response, "status": status})


def _unavailable() -> Unavailable:
    message = "Background responses cannot be read or written at the moment."
    return Unavailable(message, code="state_unavailable")
