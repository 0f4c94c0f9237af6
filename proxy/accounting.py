"""Completes the record of a call, so that no token that a backend may have used is missing.

the backend          tokens in the record
sent counts          those
sent none            estimates, from the texts of the call and of what has passed: the client left, a policy stopped
                     the reply, the stream broke off ...
worked several       the input once for each attempt, where one was hedged or failed after it was sent; of an output
times                that was given up nothing is known
was not called       none, but saved_input_tokens and saved_output_tokens: the cache has answered
"""

from collections.abc import Awaitable

from proxy.capture import capture
from proxy.context import Context
from proxy.telemetry.record import FROM_CACHE, RequestRecord
from proxy.telemetry.vocabulary import sent_attributes
from proxy.wire.call import Call
from proxy.wire.token_estimate import BYTES_PER_TOKEN, estimate_input, estimate_tokens
from proxy.wire.transcript import Transcript

USING = frozenset({"create", "compact"})
"""The operations with which a backend uses tokens."""
NO_TOKENS = None, None, None


async def complete_record(context: Context) -> None:
    """Complete the record as `finish_record` does, and wait for it."""
    waiting = finish_record(context)
    if waiting is not None:
        await waiting


def finish_record(context: Context) -> Awaitable[None] | None:
    """Take ids and token counts from the reply; estimate the counts that the backend did not send.

    Then set their cost. A second call does nothing. Returns an awaitable for the rest; None for most calls, whose
    counts and price are known.
    """
    if context.is_recorded:
        return None
    context.is_recorded = True
    record, call, runs = context.record, context.sent_call, context.runs
    is_saved = record.cache in FROM_CACHE and (call is None or record.cache != "collapsed")
    if record.finish_reason is None:  # no attempt of this context has read it
        record.read(context.transcript, is_saved=is_saved)
    if call is not None and runs and call.operation in USING:
        if type(record.input_tokens) is not int or type(record.output_tokens) is not int:
            return _finish_estimated(call, Transcript() if is_saved else context.transcript, context)
        if runs > 1:
            _count_all_runs(record, runs)
    return _finish_cost(context)


async def complete_cost(context: Context) -> None:
    """Set the cost of the tokens in the record, if there are any."""
    if context.quote is not None and _has_tokens(context.record):
        await context.quote.price(context.record)


async def _finish_estimated(call: Call, passed: Transcript, context: Context) -> None:
    """Complete a record that lacks counts. `passed` is the part of the reply that was passed on."""
    await _estimate(context.record, call, passed, context)
    if context.runs > 1:
        _count_all_runs(context.record, context.runs)
    if (waiting := _finish_cost(context)) is not None:
        await waiting


def _finish_cost(context: Context) -> Awaitable[None] | None:
    """Set the cost of the tokens, and describe the call in its trace. Returns an awaitable for the rest, if any."""
    quote = context.quote
    if context.trace.is_recording or (quote is not None and quote.lookup is not None):
        return _price_and_show(context)
    if quote is not None and _has_tokens(context.record):
        quote.price_now(context.record)
    return None


async def _price_and_show(context: Context) -> None:
    """Set the cost once the price is known; describe a recorded call, and capture its content."""
    await complete_cost(context)
    if not context.trace.is_recording or context.sent_call is None:
        return
    settings = context.trace.settings
    context.trace.describe_call(sent_attributes(context.sent_call.body, settings.semconv))
    mode = settings.capture.get(context.caller.team, "none")
    if mode != "none":
        await capture(context, context.sent_call, mode)


def _has_tokens(record: RequestRecord) -> bool:
    return (record.input_tokens, record.output_tokens, record.saved_input_tokens) != NO_TOKENS


def _count_all_runs(record: RequestRecord, runs: int) -> None:
    """Count the input once for each attempt that may have used it."""
    record.input_tokens *= runs
    record.estimated = True


async def _estimate(record: RequestRecord, call: Call, passed: Transcript, context: Context) -> None:
    """Set the counts that are missing."""
    size = call.size_bytes + passed.response_bytes
    missing = [name for name in ("input_tokens", "output_tokens") if type(getattr(record, name)) is not int]
    counts = {"input_tokens": call.size_bytes // BYTES_PER_TOKEN, "output_tokens": 0}
    record.estimated = True
    try:
        counts = await context.run(size, _count, call, passed)
    finally:  # without counts if the call is cancelled meanwhile
        for name in missing:
            setattr(record, name, counts[name])


def _count(call: Call, transcript: Transcript) -> dict[str, int]:
    """Return estimates of input and output."""
    final = transcript.response.get("output")
    if not isinstance(final, list) or not final:
        final = [*transcript.items, *(item for _, item in transcript.cut_open_items())]
    return {"input_tokens": estimate_input(call.body), "output_tokens": estimate_tokens(final)}


def finish_call(event: str, context: Context, *, is_asked: bool = True) -> None:
    """Count a call that no request waits for, end its trace, and queue its log line and metrics.

    `is_asked`: a caller has asked for it.
    """
    record = context.record
    if context.usage is not None:
        context.usage.count(record, is_call=is_asked)
    context.finished.add(event, context.request_id, record, context.trace)
    context.trace.end(record)
