"""Records what passes a guard in the transcript, and counts what is kept of it in the memory of the call."""

from collections.abc import AsyncIterator, Awaitable

from proxy.context import Context
from proxy.wire.errors import BackendError, Unavailable
from proxy.wire.event import Batch, Run
from proxy.wire.passage import Outlet, Passage, pass_runs

MAX_KEPT_BYTES = 268_435_456
"""How large the items of one response may be together, in bytes."""


def record(batch: Batch, context: Context) -> None:
    """Add a batch to the transcript, and what is kept of it to the call's memory.

    Raises BackendError or Unavailable before anything is recorded, if there is no room for the batch.
    """
    transcript, memory = context.transcript, context.memory
    before, size = transcript.kept_bytes, transcript.size_of(batch)
    if size == before == 0:  # nothing of it is kept
        transcript.see(batch)
        return
    if before + size > MAX_KEPT_BYTES:
        raise BackendError("The items of the response are too large.", code="upstream_too_large", source="gateway")
    try:
        memory.grow(size)
    except Unavailable:
        if not transcript.drop_frames():
            raise
        memory.grow(transcript.kept_bytes - before)  # the cache keeps nothing of this reply: it never fails a call
        before, size = transcript.kept_bytes, transcript.size_of(batch)
        memory.grow(size)
    transcript.see(batch)
    if difference := transcript.kept_bytes - before - size:
        memory.grow(difference)


def record_run(run: Run, context: Context) -> None:
    """Record frames that only pass, as `record` does."""
    transcript = context.transcript
    size = transcript.size_of_run(run)
    if size is None or transcript.kept_bytes + size > MAX_KEPT_BYTES:
        record([run], context)
    else:
        context.memory.grow(size)
        transcript.see_run(run, size)


class GuardedBatches(Passage):
    """The batches that a guard passes on, and the short way of the runs between them: a guard only records those."""

    __slots__ = ("_batches", "_context", "_outlet", "_received")

    def __init__(self, batches: AsyncIterator[Batch], received: AsyncIterator[Batch], context: Context) -> None:
        """`received` are those that the guard reads."""
        self._batches = batches
        self._received: AsyncIterator[Batch] | None = received
        self._context = context
        self._outlet: Outlet

    def __anext__(self) -> Awaitable[Batch]:
        return self._batches.__anext__()

    def pass_runs(self, outlet: Outlet) -> None:
        """Record each run that the outlet takes, unless all frames are kept: then the guard sees every batch."""
        received, self._received = self._received, None  # which will refer to these: no cycle may keep a call
        if received is not None and not self._context.transcript.keeps_frames:
            self._outlet = outlet
            pass_runs(received, self._pass)

    def _pass(self, run: Run) -> bool:
        transcript, memory = self._context.transcript, self._context.memory
        size = transcript.size_of_run(run)
        if size is None or transcript.kept_bytes + size > MAX_KEPT_BYTES:
            return False
        try:
            memory.grow(size)
        except Unavailable:
            return False  # the guard drops what can be spared, or ends the stream
        if self._outlet(run):
            transcript.see_run(run, size)
            return True
        memory.grow(-size)
        return False
