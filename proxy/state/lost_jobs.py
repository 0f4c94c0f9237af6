"""Ends background responses whose process died: as failed, or as their journal says if it has their last event."""

from dataclasses import replace

import structlog

from proxy.context import Context
from proxy.state.job_records import JobRecords
from proxy.state.jobs import JobKeys
from proxy.state.journal import Journals
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.wire.ending import failure_events
from proxy.wire.errors import BackendError

log = structlog.get_logger()

ACTIVE = frozenset({"queued", "in_progress"})


class LostJobs:
    """The responses that no process works on."""

    def __init__(self, responses: StoredResponses, journals: Journals, records: JobRecords) -> None:
        self._responses = responses
        self._journals = journals
        self._records = records

    async def settle(self, stored: StoredResponse, keys: JobKeys, context: Context) -> StoredResponse:
        """Return a response as it ended, for the one that holds its lease.

        Open items are closed as incomplete in its journal. Raises StoreError, Unavailable.
        """
        found = await self._responses.get(stored.id, context)
        if found is None or not is_active(found):
            return found or stored
        transcript = await self._journals.transcript(keys.journal, context.run)
        message = "The gateway's process that worked on this response ended before the response was complete."
        error = BackendError(message, code="process_lost")
        size, events = found.size_bytes + transcript.response_bytes, []
        if not transcript.is_ended:
            events = await context.run(size, failure_events, transcript, error)
        elif transcript.lacks_output:
            await context.run(size, transcript.compose_output)
        ended = replace(found, response={**found.response, **transcript.response}, size_bytes=size)
        await self._records.note_lost(stored.id, context)
        # The events are written first: if the next command fails, the job is found again.
        await self._journals.append_last(keys.journal, events, context.run)
        await self._responses.save(ended, context)
        log.warning("background.lost", response_id=stored.id, status=ended.response.get("status"))
        return ended


def is_active(stored: StoredResponse) -> bool:
    """Whether a response has not ended."""
    return stored.response.get("status") in ACTIVE
