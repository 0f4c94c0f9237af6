"""Compaction for backends that have none: a conversation becomes its user messages and one sealed item.

    POST /v1/responses/compact    all user messages, followed by one `compaction` item with the rest
    `compaction_trigger` as last item of input    a response of exactly one `compaction` item with everything

No model is called: the rest is shortened as `summary.py` says. What is in the item only the team that received it can
give back, at any backend: its words then stand where the item stands, and instructions in front of everything.

Source: https://platform.openai.com/docs/guides/conversation-state#compaction
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from proxy.context import Context
from proxy.lane import offer_brief
from proxy.routing.routes import Route
from proxy.state.sealing import Sealing
from proxy.state.summary import is_system, is_user, summarize, text_of
from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.errors import RequestError
from proxy.wire.event import Reply, response_reply
from proxy.wire.ignored import ignored_header
from proxy.wire.items import JSON
from proxy.wire.large_bytes import find_text
from proxy.wire.query import query_pairs

PURPOSE = "compaction"
ITEM, TRIGGER = "compaction", "compaction_trigger"
INTRODUCTION = "Summary of the conversation so far:\n"
COMPACTED = frozenset({"model", "input", "previous_response_id", "store"})
"""The fields of POST /v1/responses/compact that decide what is in the item, and the one that the history sets."""
MAX_CHARS, USUAL_CHARS = 131_072, 16_384
"""The longest summary, and the longest for a model whose context length is unknown, in characters."""


class Compaction:
    """Compacts conversations, and reads what it has sealed."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    def is_due(self, call: Call, route: Route) -> bool:
        """Return whether the gateway answers this call itself: a compaction that no target of the route supports."""
        if route.compacts:
            return False
        return call.operation == "compact" or (call.operation == "create" and _is_triggered(call))

    async def open(self, call: Call, context: Context) -> Call:
        """Return the call with the contents of the team's own compaction items in their place. Raises Unavailable.

        Items of other origin stay as they are: whether a backend can read them is its own matter.
        """
        given = call.body.get("input")
        if not isinstance(given, list):
            return call
        is_large = context.is_large(call.size_bytes)
        if not (await context.run_large(_may_have_compaction, call) if is_large else _may_have_compaction(call)):
            return call
        system: list[JSON] = []
        items: list[Any] = []
        for item in given:
            opened = await self.open_item(item, context.caller.team)
            for each in [item] if opened is None else opened:
                (system if opened is not None and is_system(each) else items).append(each)
        if len(items) == len(given) and items == given:
            return call
        offer_brief(None, context)  # it may have the same items unopened
        return call.with_fields(input=[*system, *items])

    async def open_item(self, item: Any, team: str) -> list[JSON] | None:
        """Return the messages in a compaction item; None for another item, or one that this team cannot open."""
        if not isinstance(item, dict) or item.get("type") != ITEM:
            return None
        sealed = item.get("encrypted_content")
        content = await self._sealing.open(sealed, purpose=PURPOSE, team=team) if isinstance(sealed, str) else None
        if content is None:
            return None
        kept = orjson.loads(content)  # sealed by `_seal`
        messages = [{"type": "message", "role": "developer", "content": text} for text in kept["system"]]
        if kept["summary"]:
            summary = [{"type": "output_text", "text": INTRODUCTION + kept["summary"], "annotations": []}]
            messages.append({"type": "message", "role": "assistant", "content": summary})
        return messages

    @asynccontextmanager
    async def reply(self, call: Call, route: Route, context: Context) -> AsyncIterator[Reply]:
        """The answer to a call that is due. Raises RequestError for a call without a conversation, Unavailable."""
        context.record.route = route.name
        context.target = None if route.keeps_state else route.targets[0].name  # then the gateway keeps the response
        items = _items(call)
        max_chars = await _summary_chars(call, route)
        if call.operation == "compact":
            users = [_user_message(item) for item in items if is_user(item)]
            rest = [item for item in items if not is_user(item)]
            sealed = await self._seal(rest, call.size_bytes, max_chars, context)
            yield response_reply(_compaction_object([*users, sealed]), _ignored_header(call))
        else:
            composer = Composer(response_object(call.body, response_id=new_id("resp"), created_at=int(time.time())))
            composer.item(await self._seal(items[:-1], call.size_bytes, max_chars, context))
            composer.finish(usage(input_tokens=0, output_tokens=0))  # no model was called
            yield response_reply(composer.response, _ignored_header(call))

    async def _seal(self, items: Sequence[Any], size_bytes: int, max_chars: int, context: Context) -> JSON:
        """Return a compaction item with what these items say."""
        content = await context.run(size_bytes, _content, items, max_chars)
        sealed = await self._sealing.seal(content, purpose=PURPOSE, team=context.caller.team)
        return {"id": new_id("cmp"), "type": ITEM, "encrypted_content": sealed}


def _ignored_header(call: Call) -> dict[str, str]:
    """Return the header that names ignored query parameters, and ignored fields of a compact request."""
    names = [name for name, given in call.body.items() if given is not None and name not in COMPACTED]
    in_query = [f"query.{name}" for name, _ in query_pairs(call.query) if name]
    return ignored_header([*(names if call.operation == "compact" else ()), *in_query])


def _is_triggered(call: Call) -> bool:
    given = call.body.get("input")
    last = given[-1] if isinstance(given, list) and given else None
    return isinstance(last, dict) and last.get("type") == TRIGGER


def _items(call: Call) -> Sequence[Any]:
    """Return the items of a conversation. Raises RequestError if there are none."""
    given = call.body.get("input")
    if isinstance(given, str) and given:
        return [{"type": "message", "role": "user", "content": given}]
    if isinstance(given, list) and given:
        return given
    raise RequestError("Missing required parameter: 'input'.", code="missing_required_parameter", param="input")


def _content(items: Sequence[Any], max_chars: int) -> bytes:
    """Return the content of a compaction item: operators' and developers' messages whole, and a summary of the rest."""
    content = {
        "system": [text_of(item.get("content")) for item in items if is_system(item)],
        "summary": summarize((item for item in items if not is_system(item)), max_chars),
    }
    return orjson.dumps(content)


def _compaction_object(output: Sequence[JSON]) -> JSON:
    """Return the object of POST /v1/responses/compact. Its usage is 0, because no model was called."""
    return {
        "id": new_id("resp"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": output,
        "usage": usage(input_tokens=0, output_tokens=0),
    }


def _user_message(item: JSON) -> JSON:
    """Return a message of the user in the form that responses have: with an id, a status, and a list of parts."""
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    item_id = item.get("id")
    return {
        "id": item_id if isinstance(item_id, str) else new_id("msg"),
        "type": "message", "role": "user", "status": "completed", "content": parts,
    }  # fmt: skip


async def _summary_chars(call: Call, route: Route) -> int:
    """Return how long a summary may be: about a quarter of the model's context, which has four characters a token."""
    known: Mapping[str, Any] = await route.targets[0].describe(call.model)
    length = known.get("context_length")
    return min(length, MAX_CHARS) if isinstance(length, int) else USUAL_CHARS


def _may_have_compaction(call: Call) -> bool:
    return find_text(call.encoded, b'"compaction"') >= 0
