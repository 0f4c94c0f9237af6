"""Adds checked batches to the transcript of the reply, and reserves memory for the part that it keeps."""

from proxy.context import Context
from proxy.wire.errors import BackendError, Unavailable
from proxy.wire.event import TERMINALS, Batch, Run, ends_with_output

RESPONSE_EVENTS = TERMINALS | {"response.created", "error"}
"""The events that are kept of a batch whose last event has the items of the response."""


def add_to_transcript(batch: Batch, context: Context) -> None:
    """Add a batch to the transcript, and reserve memory for what is kept of it.

    Raises BackendError or Unavailable before anything is added, if there is no room for the batch.
    """
    transcript, memory = context.transcript, context.memory
    is_end = ends_with_output(batch) and not transcript.keeps_frames
    if is_end:
        batch = [unit for unit in batch if unit.type in RESPONSE_EVENTS]
    before, size = transcript.kept_bytes, transcript.size_of(batch)
    if size == before == 0:  # nothing of it is kept
        transcript.add(batch)
        return
    if not transcript.has_room_for(size):
        raise BackendError("The items of the response are too large.", code="upstream_too_large", source="gateway")
    try:
        memory.grow(size)
    except Unavailable:
        if not transcript.drop_frames():
            raise
        memory.grow(transcript.kept_bytes - before)  # the cache keeps nothing of this reply: it never fails a call
        before, size = transcript.kept_bytes, transcript.size_of(batch)
        memory.grow(size)
    if is_end:
        transcript.drop_items()
    transcript.add(batch)
    if difference := transcript.kept_bytes - before - size:
        memory.grow(difference)


def add_run_to_transcript(run: Run, context: Context) -> None:
    """Do the same for a single run, at a lower cost where that is possible."""
    if not context.transcript.forward_run(_take, context.memory.grow, run.raw, type(run)):
        add_to_transcript([run], context)


def _take(_run: bytes) -> bool:
    return True
