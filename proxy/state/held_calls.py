"""Calls in WebSocket mode that continue a response which only their connection keeps, to backends that keep state."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from proxy.context import Context
from proxy.lane import is_warm_up, offer_brief
from proxy.state.held_responses import LANE_MEMORY, HeldResponse, LaneMemory, held_response, replayable
from proxy.state.items import StoredItem, input_items, kept_input
from proxy.state.references import is_id, not_found
from proxy.state.responses import report_not_kept
from proxy.wire.call import Call
from proxy.wire.errors import Unavailable
from proxy.wire.transcript import Transcript

CONTINUABLE = frozenset({"completed", "incomplete"})


async def complete_held_call(call: Call, context: Context) -> Call:
    """Return the call with the items of the held response that it continues; hold its reply if its backend does not.

    Raises RequestError for an input that is not a list, Unavailable.
    """
    memory = context.get(LANE_MEMORY)
    if memory is None or call.operation != "create" or call.body.get("conversation") is not None:
        return call
    previous, given = call.body.get("previous_response_id"), call.body.get("input")
    held = held_response(previous, context)
    if held is None:
        if memory.responses.is_evicted(previous):
            raise not_found("previous_response_id", str(previous))
        hold_reply(HeldTurn(kept_input(given), base=previous), call, context)
        return call
    past, own = await held.read(context), input_items(given)
    context.response_fields = {"previous_response_id": previous}
    context.history_items = len(past)
    hold_reply(HeldTurn(own, past, held.base), call, context)
    offer_brief(call, context)
    whole = call.without_fields("previous_response_id")
    if held.base is not None:
        whole = whole.with_fields(previous_response_id=held.base)
    return whole.with_fields(input=[*replayable(past), *own])


@dataclass(frozen=True, slots=True)
class HeldTurn:
    """The input of a call and what it continues: a response before `past` that its backend keeps is the `base`."""

    own: Sequence[Any]
    past: Sequence[StoredItem] = ()
    base: str | None = None


def hold_reply(turn: HeldTurn, call: Call, context: Context) -> None:
    """Hold the reply to a call in WebSocket mode when it is complete, if nothing else keeps it."""
    memory = context.get(LANE_MEMORY)
    if memory is not None:
        context.on_reply(partial(_hold, memory, turn, call))


async def _hold(memory: LaneMemory, turn: HeldTurn, call: Call, context: Context, transcript: Transcript) -> None:
    response = transcript.response
    is_kept = call.body.get("store") is not False and response.get("store") is not False and not is_warm_up(context)
    if is_kept or response.get("status", "completed") not in CONTINUABLE or not is_id(response.get("id")):
        return
    size = call.size_bytes + transcript.response_bytes
    try:
        memory.keep(await context.run(size, HeldResponse.of, response, turn.past, turn.own, turn.base, size))
    except (Unavailable, orjson.JSONEncodeError) as error:
        report_not_kept(context, error)
