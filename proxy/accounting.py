"""Completes the record of a call: no token that a backend may have used is missing in it.

the backend          tokens in the record
sent counts          those
sent none            estimates, from the texts of the call and of what has passed: the client left, a policy stopped
                     the reply, the stream broke off ...
worked several       the input once for each attempt, where one was hedged or failed after it was sent; of an output
times                that was given up nothing is known
was not called       none, but saved_input_tokens and saved_output_tokens: the cache has answered
"""

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
    """Take ids and token counts from the reply; estimate those that a backend should have sent, and did not.

    Then set what they cost. A second time it does nothing.
    """
    if context.is_recorded:
        return
    context.is_recorded = True
    await _complete_tokens(context, context.record)
    await complete_cost(context)
    if context.trace.is_recording and context.sent_call is not None:
        settings = context.trace.settings
        context.trace.describe_call(sent_attributes(context.sent_call.body, settings.semconv))
        mode = settings.capture.get(context.caller.team, "none")
        if mode != "none":
            await capture(context, context.sent_call, mode)


async def complete_cost(context: Context) -> None:
    """Set what the tokens in the record cost, if there are any."""
    record, quote = context.record, context.quote
    if quote is not None and (record.input_tokens, record.output_tokens, record.saved_input_tokens) != NO_TOKENS:
        await quote.price(record)


async def _complete_tokens(context: Context, record: RequestRecord) -> None:
    call = context.sent_call
    is_saved = record.cache in FROM_CACHE and (call is None or record.cache != "collapsed")
    if record.finish_reason is None:  # no attempt of this context has read it
        record.read(context.transcript, is_saved=is_saved)
    if call is None or context.runs == 0 or call.operation not in USING:
        return
    if type(record.input_tokens) is not int or type(record.output_tokens) is not int:
        await _estimate(record, call, Transcript() if is_saved else context.transcript, context)
    if context.runs > 1:
        record.input_tokens *= context.runs
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
    """Count a call that no request waits for, end its trace, and leave its log line and the metrics for later.

    `is_asked`: a caller has asked for it.
    """
    record = context.record
    context.finished.add(event, context.request_id, record, context.trace)
    if context.usage is not None:
        context.usage.count(record, is_call=is_asked)
    context.trace.end_call(record)
    context.trace.end(record)
