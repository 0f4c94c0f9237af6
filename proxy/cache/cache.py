"""Looks up and keeps whole replies. A fault of the store is a miss and one log line, never an error."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import structlog

from policies.support.tools import has_server_tools
from proxy.cache.entry import KEPT_HEADERS, Entry, echoed_fields
from proxy.cache.key import cache_key
from proxy.config.schema import CacheTable
from proxy.context import Context
from proxy.routing.routes import FALLBACK, Route
from proxy.state.responses import NOT_KEPT
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.event import Reply
from proxy.wire.loggable import summarize_error
from proxy.wire.transcript import Transcript

log = structlog.get_logger()


@dataclass(slots=True)
class CacheSlot:
    """The place of one call in the cache. With a reply no backend is called; without a key the answer is not kept."""

    key: str | None = None
    reply: Reply | None = None


class Cache:
    """The cache of a gateway; without settings or a store it keeps nothing."""

    def __init__(
        self, settings: CacheTable | None, store: Store | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns the time in seconds, the same for all processes that share the store."""
        self._settings = settings
        self._store = store
        self._clock = clock

    async def slot(self, call: Call, route: Route, context: Context) -> CacheSlot:
        """Return the call's slot, with the kept reply if there is one that the caller accepts."""
        if self._settings is None or self._store is None:
            return CacheSlot()
        directives = _directives(context.received.get("cache-control", ""))
        is_kept = call.operation == "create"
        reason = (
            "no-store" if "no-store" in directives
            else await self._bypass_reason(call, context) if is_kept
            else call.operation
        )  # fmt: skip
        if reason is not None:
            _report(context, "bypass", f"fwd=bypass; detail={reason}")
            return CacheSlot()
        key = await context.run(len(call.encoded), _key_of, call, context.caller.team, route)
        if "no-cache" in directives:
            _report(context, "refresh", "fwd=request")
            return CacheSlot(key)
        entry = await self._get(key)
        reply = None if entry is None else entry.reply(call, context.followed)
        if entry is None or reply is None:
            _report(context, "miss", "fwd=uri-miss")
            return CacheSlot(key)
        age_s = max(0.0, self._clock() - entry.stored_at)
        _report(context, "hit", f"hit; ttl={int(self._settings.ttl_s - age_s)}")
        context.add_header("Age", str(int(age_s)))
        return CacheSlot(key, reply)

    def keep(self, slot: CacheSlot, call: Call, context: Context) -> None:
        """Keep the reply in the slot once it is complete."""
        reply = slot.reply
        if slot.key is None or self._settings is None or reply is None or reply.status != 200:
            return
        if context.get(FALLBACK) is not None:  # another model's answer, which the next caller need not be given
            return
        if reply.batches is not None:
            context.transcript.keep_frames(self._settings.max_reply_bytes)
        context.on_reply(partial(self._put, slot.key, call, reply, context))

    async def _bypass_reason(self, call: Call, context: Context) -> str | None:
        """Why this call is never answered from the cache, as a word for `Cache-Status`."""
        body = call.body
        if not isinstance(body.get("prompt_cache_key"), str):
            return "no-prompt-cache-key"
        if body.get("background"):
            return "background"
        if body.get("conversation") is not None:
            return "conversation"
        if self._settings is not None and not self._settings.server_tools:
            if body.get("prompt") is not None:
                return "prompt"
            if await context.run(len(call.encoded), has_server_tools, body):
                return "tools"
        return None

    async def _get(self, key: str) -> Entry | None:
        try:
            value = await self._store.get(key) if self._store else None
        except StoreError as error:
            log.warning("cache.read_failed", error=str(error)[:200])
            return None
        return None if value is None else Entry.decode(value, key)

    async def forget(self, team: str, response_id: str) -> None:
        """Drop the kept reply with this id, which its owner has deleted. A fault of the store is one log line."""
        if self._store is None:
            return
        index = _index_key(team, response_id)
        try:
            key = await self._store.get(index)
            if key is not None:
                await self._store.delete(key.decode(errors="replace"))
                await self._store.delete(index)
        except StoreError as error:
            log.warning("cache.delete_failed", error=str(error)[:200])

    async def _put(self, key: str, call: Call, reply: Reply, context: Context, transcript: Transcript) -> None:
        """Keep a reply that ended in a completed response, is as the backend sent it, and is within the size limit."""
        terminal = transcript.terminal
        if self._settings is None or self._store is None or terminal is None or terminal.type != "response.completed":
            return
        if terminal.response.get("status") != "completed":
            return
        if transcript.is_changed:  # by a rule that may not apply to the next caller
            return
        if context.get(NOT_KEPT):  # its id cannot be retrieved
            return
        frames = transcript.frames() if reply.batches is not None else b""
        if frames is None or len(reply.body or b"") > self._settings.max_reply_bytes:
            return
        headers = {name: value for name, value in reply.headers.items() if name.startswith(KEPT_HEADERS)}
        try:
            text = frames.decode() if reply.batches is not None else None
            entry = Entry(self._clock(), echoed_fields(call), headers, text, transcript.response)
            await self._index(key, call, transcript.response, context)
            await self._store.put(key, entry.encode(key), ttl_s=self._settings.ttl_s)
        except (StoreError, UnicodeDecodeError, orjson.JSONEncodeError) as error:
            found = str(error)[:200] if isinstance(error, StoreError) else summarize_error(error)
            log.warning("cache.write_failed", error=found)

    async def _index(self, key: str, call: Call, response: Mapping[str, Any], context: Context) -> None:
        """Note under which key the reply with this id is kept, for `forget`."""
        response_id = response.get("id")
        if self._store is None or self._settings is None or call.body.get("store") is False:
            return
        if isinstance(response_id, str):
            index = _index_key(context.caller.team, response_id)
            await self._store.put(index, key.encode(), ttl_s=self._settings.ttl_s)


def _key_of(call: Call, team: str, route: Route) -> str:
    return cache_key(call, (team,), route.name, route.headers(call))


def _index_key(team: str, response_id: str) -> str:
    parts = (team.encode(errors="surrogatepass"), response_id.encode(errors="surrogatepass"))
    digest = hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts))
    return f"headgate:cached:{digest.hexdigest()}"


def _directives(cache_control: str) -> frozenset[str]:
    """The names of the request's cache directives. Source: https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1."""
    return frozenset(name.strip().lower().partition("=")[0] for name in cache_control.split(",")) - {""}


def _report(context: Context, outcome: str, status: str) -> None:
    """Record the outcome and return it to the caller. Source: https://www.rfc-editor.org/rfc/rfc9211."""
    context.record.cache = outcome
    context.add_header("Cache-Status", f"headgate; {status}")
