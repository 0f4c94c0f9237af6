"""Answers given before to the same question of the same team: key, recall, record.

A request's `prompt_cache_key` is its consent, and a part of the key. The rest of the key is all that can change the
answer: the team, the backend, and the whole body less the fields that only say who asks or how to deliver.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import structlog

from proxy.observe import add_header, note
from proxy.stores import Store, StoreError
from proxy.tables import CacheTable
from proxy.wire.call import Call
from proxy.wire.compose import finished
from proxy.wire.event import TERMINALS, Event, Once, Reply, frame_of, response_events
from proxy.wire.sse import SSEParser
from proxy.wire.tools import has_server_tools

log = structlog.get_logger()

VERSION = b"headgate cache 2"
NOT_IN_KEY = frozenset({"stream", "stream_options", "metadata", "safety_identifier", "user", "store"})
ECHOED = ("metadata", "safety_identifier", "user")
OWN_HEADERS = "x-headgate-"  # what the gate told beside an answer holds for the same answer given again
LIFECYCLE = frozenset({"response.created", "response.in_progress", "response.queued"}) | TERMINALS


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one call in the cache. Without a key nothing is kept; with a reply nobody else need be asked."""

    key: str | None = None
    reply: Reply | None = None


class Cache:
    """Recalls and records whole replies. A fault of the store is a miss and one log line, never an error or a wait."""

    def __init__(self, settings: CacheTable | None, store: Store | None) -> None:
        self._settings = settings
        self._store = store

    async def recall(self, call: Call, backend: str) -> Slot:
        """The call's slot, with the kept reply if there is one that the caller wants."""
        if self._settings is None or self._store is None:
            return Slot()
        wishes = _wishes(call.cache_control) if call.cache_control else frozenset()
        bypass = "no-store" if "no-store" in wishes else self._reason_against(call.body)
        if bypass is not None:
            self._say("bypass", f"fwd=bypass; detail={bypass}")
            return Slot()
        key = key_of(call, backend)
        if "no-cache" in wishes:
            self._say("refresh", "fwd=request")
            return Slot(key)
        kept = await self._get(key)
        if kept is None:
            self._say("miss", "fwd=uri-miss")
            return Slot(key)
        age = max(0.0, time.time() - kept["stored_at"])
        self._say("hit", f"hit; ttl={int(self._settings.ttl_s - age)}")
        add_header("Age", str(int(age)))
        return Slot(key, _replayed(kept, call))

    def record(self, call: Call, slot: Slot, reply: Reply) -> Reply:
        """The same reply; what passes is kept once it ended in a completed response."""
        if slot.key is None or reply.status != 200 or self._settings is None:
            return reply
        return replace(reply, batches=self._recorded(call, slot.key, reply))

    async def _recorded(self, call: Call, key: str, reply: Reply) -> AsyncIterator[Sequence[Event]]:
        frames: list[bytes] = []
        items: list[Any] = []
        size, limit = 0, self._settings.max_reply_bytes if self._settings else 0
        async for batch in reply.batches:
            for event in batch:
                size += len(event.frame)
                if size <= limit:
                    frames.append(event.frame)
                if event.type == "response.output_item.done":
                    items.append(event.data.get("item"))
                done = event.type == "response.completed" and event.response.get("status") == "completed"
                if done and size <= limit:
                    await self._put(key, call, reply, b"".join(frames), finished(event.response, items))
            yield batch

    def _reason_against(self, body: Mapping[str, Any]) -> str | None:
        """Why this call is never answered from the cache, as a word for `Cache-Status`."""
        if not isinstance(body.get("prompt_cache_key"), str):
            return "no-prompt-cache-key"
        if body.get("background"):
            return "background"
        if body.get("conversation") is not None:
            return "conversation"
        if self._settings is not None and not self._settings.server_tools:
            if body.get("prompt") is not None:
                return "prompt"
            if has_server_tools(body):
                return "tools"
        return None

    async def _get(self, key: str) -> dict[str, Any] | None:
        try:
            value = await self._store.get(key) if self._store else None
            kept = None if value is None else orjson.loads(value)
        except (StoreError, ValueError) as error:
            log.warning("cache.failed", action="get", error=str(error)[:200])
            return None
        # An entry says whose it is: one that a faulty store or connection hands out for another is nobody's.
        if not isinstance(kept, dict) or kept.get("key") != key:
            return None
        return kept

    async def _put(self, key: str, call: Call, reply: Reply, frames: bytes, response: Mapping[str, Any]) -> None:
        kept = {
            "key": key,
            "stored_at": time.time(),
            "echoed": _echoed(call),
            "headers": {name: value for name, value in reply.headers.items() if name.startswith(OWN_HEADERS)},
            "frames": frames.decode() if reply.streamed else None,
            "response": response,
        }
        try:
            if self._store and self._settings:
                await self._store.put(key, orjson.dumps(kept), ttl_s=self._settings.ttl_s)
        except StoreError as error:
            log.warning("cache.failed", action="put", error=str(error)[:200])

    @staticmethod
    def _say(outcome: str, status: str) -> None:
        """Source: https://www.rfc-editor.org/rfc/rfc9211."""
        note(cache=outcome)
        add_header("Cache-Status", f"headgate; {status}")


def key_of(call: Call, backend: str) -> str:
    """The hex SHA-256 of all that can change the answer, each part with its length before it.

    The body's names are sorted; those that Headgate does not know count.
    """
    asked = {name: value for name, value in call.body.items() if name not in NOT_IN_KEY}
    digest = hashlib.sha256()
    for part in (
        VERSION,
        call.caller.team.encode(),
        str(call.body["prompt_cache_key"]).encode(),
        backend.encode(),
        call.query.encode(),
        orjson.dumps(asked, option=orjson.OPT_SORT_KEYS),
    ):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()


def _wishes(cache_control: str) -> frozenset[str]:
    return frozenset(wish.strip().lower().partition("=")[0] for wish in cache_control.split(","))


def _echoed(call: Call) -> dict[str, Any]:
    return {name: call.body.get(name) for name in ECHOED}


def _replayed(kept: Mapping[str, Any], call: Call) -> Reply:
    """The kept reply as the answer to this call: what echoes the request echoes this one, not the first."""
    mine = _echoed(call)
    same = mine == kept["echoed"]
    mine["metadata"] = mine["metadata"] or {}
    own = {name: value for name, value in mine.items() if name in kept["response"]}
    if call.stream and kept["frames"] is not None:
        events = SSEParser(LIFECYCLE).feed(kept["frames"].encode())
        if not same:
            events = [_echoing(event, mine) for event in events]
        return Reply(200, kept["headers"], Once(events), streamed=True)
    response = kept["response"] if same else {**kept["response"], **own}
    return Reply(200, kept["headers"], Once(response_events(response, orjson.dumps(response))), streamed=False)


def _echoing(event: Event, mine: Mapping[str, Any]) -> Event:
    if event.type not in LIFECYCLE:
        return event
    own = {name: value for name, value in mine.items() if name in event.response}
    data = {**event.data, "response": {**event.response, **own}}
    return Event(event.type, frame_of(event.type, data), data)
