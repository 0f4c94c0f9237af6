"""A streamed answer: parses what arrives in steps, between which other calls have a turn."""

import asyncio
from collections.abc import Awaitable
from functools import partial

from backends.upstream.body import AnswerLimits, UpstreamAnswer, read_chunk
from backends.upstream.decode import Decoder
from backends.upstream.dialects.repairs import StreamRepairs
from backends.upstream.errors import invalid_answer
from proxy.context import Context
from proxy.wire.event import Batch, has_terminal
from proxy.wire.large_json import DENSE_BYTES
from proxy.wire.passage import Outlet, Passage
from proxy.wire.run_check import RunCheck
from proxy.wire.sse import SSEParser
from proxy.workers import MANY_VALUES

STEP_BYTES = 65_536
"""How much of a stream is parsed before other calls have a turn, in bytes."""
MENDED_STEP_BYTES = 8_192
"""The same of a stream whose frames may all have to be mended."""
STEP_UNITS = 24
"""How many events and runs of a stream are parsed before other calls have a turn."""


class Stream(Passage):
    """The batches of a streamed answer: one batch is what one read brought. Does not own the answer."""

    def __init__(
        self, answer: UpstreamAnswer, context: Context, limits: AnswerLimits, decoder: Decoder, start: bytes
    ) -> None:
        """`start` is what was read already."""
        self.answer = answer
        model = context.record.model
        self._repairs = StreamRepairs(limits.repairs, context.followed, model) if limits.repairs else None
        self._step_bytes = MENDED_STEP_BYTES if limits.repairs else STEP_BYTES
        followed = context.followed if self._repairs is None else self._repairs.followed
        self._parser = SSEParser(followed, max_units=STEP_UNITS, max_values=MANY_VALUES)
        self._context = context
        self._received = start  # and not parsed yet
        self._limits = limits
        self._decoder = decoder
        self._check: RunCheck | None = None  # of what is forwarded
        self._is_ended = False
        self.is_complete = False  # whether the response's terminal event was received

    async def __anext__(self) -> Batch:
        parser = self._parser
        while not self._is_ended or parser.has_more:
            if parser.has_more:
                batch = await self._continue()
            else:
                step, before = self._take_step(self._received or await self._read()), parser.pending_bytes
                is_large = before >= DENSE_BYTES
                batch = await self._context.run_large(self._parse, step) if is_large else self._parse(step)
                if (after := parser.pending_bytes) != before:
                    self._context.memory.grow(after - before)
            if self._repairs is not None:
                batch = await self._mend(batch, self._repairs)
            if parser.has_more or not batch or len(batch) > STEP_UNITS:
                await asyncio.sleep(0)  # a flood of events must not keep other calls waiting
            if batch:
                self.answer.note_event()
                if len(batch) > 1 or batch[0].type:
                    self.is_complete = self.is_complete or has_terminal(batch)
                return batch
        raise StopAsyncIteration

    def _read(self) -> Awaitable[bytes]:
        """Return what comes next, decompressed; b"" at the end. Raises BackendError."""
        return self.answer.read() if self._decoder.is_plain else read_chunk(self.answer, self._decoder)

    def _take_step(self, received: bytes) -> bytes:
        """Return what is parsed next of what was received, and keep the rest."""
        self._is_ended = not received
        self._received = received[self._step_bytes :]
        return received[: self._step_bytes]

    async def _continue(self) -> Batch:
        """Return the next units of what was received. A frame of many values is parsed in a thread."""
        return await self._context.run_large(self._parse, b"") if self._parser.takes_long else self._parse(b"")

    def forward_runs(self, outlet: Outlet) -> None:
        """Forward runs, unless what arrives has to be decompressed or mended first."""
        if self._repairs is None and self._decoder.is_plain:
            # Only the answer knows the outlet, until it is closed: who holds that holds this stream too.
            self.answer.offer_chunks(partial(self._forward_chunk, outlet))

    def _forward_chunk(self, outlet: Outlet, chunk: bytes) -> bool:
        """Give a chunk to the outlet if it is one run that needs no change. Return whether it was taken."""
        parser, check, secrets = self._parser, self._check, self._limits.scrubber.run_patterns
        if check is None or check.secrets is not secrets:
            check = self._check = RunCheck(parser.patterns, secrets)
        return not parser.pending_bytes and len(chunk) <= STEP_BYTES and check.passes(chunk) and outlet(chunk)

    def _parse(self, chunk: bytes) -> Batch:
        """Return the units of a chunk, and none of it while there are more of the one before; an empty one ends the
        stream. Raises BackendError.
        """
        parser = self._parser
        try:
            units = parser.more() if parser.has_more else parser.feed(chunk) if chunk else parser.close()
            return self._limits.scrubber.batch(units)
        except ValueError as error:
            raise invalid_answer(f"a stream that cannot be parsed: {error}") from error

    async def _mend(self, batch: Batch, repairs: StreamRepairs) -> Batch:
        """Return a batch as clients can read it; what is put together from many deltas is in a thread."""
        is_large = repairs.must_compose(batch)
        mended = await self._context.run_large(repairs.mend, batch) if is_large else repairs.mend(batch)
        self._context.record.repairs = repairs.summary
        return mended
