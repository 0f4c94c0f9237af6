"""Looks up and keeps whole replies. A fault of the store is a miss and one log line, never an error."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import orjson
import structlog

from policies.support.tools import has_server_tools
from proxy.cache.entry import KEPT_HEADERS, Entry, echoed_fields
from proxy.cache.key import encode_call
from proxy.cache.vault import Partition, Place, Vault
from proxy.config.schema import CacheTable
from proxy.context import Caller, Context
from proxy.routing.routes import FALLBACK, Route
from proxy.state.ownership import HAS_UNKNOWN
from proxy.state.responses import NOT_KEPT
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.event import Reply
from proxy.wire.loggable import summarize_error
from proxy.wire.transcript import Transcript

log = structlog.get_logger()


@dataclass(slots=True)
class CacheSlot:
    """The place of one call in the cache. With a reply no backend is called; without a place the answer is not kept."""

    place: Place | None = None
    reply: Reply | None = None


class Cache:
    """The cache of a gateway; without settings or a store it keeps nothing."""

    def __init__(
        self, settings: CacheTable | None, store: Store | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns the time in seconds, the same for all processes that share the store."""
        self._settings = settings if store is not None else None
        secrets = () if settings is None else settings.secrets_in_order
        self._vault = None if store is None or settings is None else Vault(store, secrets)
        self._clock = clock

    async def slot(self, call: Call, route: Route, context: Context) -> CacheSlot:
        """Return the call's slot, with the kept reply if there is one that the caller accepts."""
        if self._settings is None or self._vault is None:
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
        encoded = await context.run(len(call.encoded), encode_call, call, route.name, route.headers(call))
        place = self._vault.place(encoded, partition_of(call, context.caller, self._settings.share))
        if "no-cache" in directives:
            _report(context, "refresh", "fwd=request")
            return CacheSlot(place)
        try:
            entry = await self._vault.read(place)
        except StoreError as error:
            log.warning("cache.read_failed", error=str(error)[:200])
            _report(context, "miss", "fwd=uri-miss")
            return CacheSlot()  # a store that cannot be read is not written either
        reply = None if entry is None else entry.reply(call, context.followed)
        if entry is None or reply is None:
            _report(context, "miss", "fwd=uri-miss")
            return CacheSlot(place)
        age_s = max(0.0, self._clock() - entry.stored_at)
        _report(context, "hit", f"hit; ttl={int(self._settings.ttl_s - age_s)}")
        context.add_header("Age", str(int(age_s)))
        return CacheSlot(place, reply)

    def keep(self, slot: CacheSlot, call: Call, context: Context) -> None:
        """Keep the reply in the slot once it is complete."""
        reply = slot.reply
        if slot.place is None or self._settings is None or reply is None or reply.status != 200:
            return
        if context.get(FALLBACK) is not None:  # another model's answer, which the next caller need not be given
            return
        if reply.batches is not None:
            context.transcript.keep_frames(self._settings.max_reply_bytes)
        context.on_reply(partial(self._put, slot.place, call, reply, context))

    async def forget(self, team: str, response_id: str) -> None:
        """Drop the kept reply with this id, which its owner has deleted. A fault of the store is one log line."""
        if self._vault is None:
            return
        try:
            await self._vault.forget_response(team, response_id)
        except StoreError as error:
            log.warning("cache.delete_failed", error=str(error)[:200])

    async def _bypass_reason(self, call: Call, context: Context) -> str | None:
        """Why this call is never answered from the cache, as a word for `Cache-Status`."""
        body = call.body
        reasons = {
            "no-prompt-cache-key": not isinstance(body.get("prompt_cache_key"), str),
            "background": body.get("background"),
            "conversation": body.get("conversation") is not None,
            "unknown-id": context.get(HAS_UNKNOWN),  # it may have been deleted since the answer was kept
        }
        for reason, applies in reasons.items():
            if applies:
                return reason
        if self._settings is not None and not self._settings.server_tools:
            if body.get("prompt") is not None:
                return "prompt"
            if await context.run(len(call.encoded), has_server_tools, body):
                return "tools"
        return None

    async def _put(self, place: Place, call: Call, reply: Reply, context: Context, transcript: Transcript) -> None:
        """Keep a reply that ended in a completed response, is as the backend sent it, and is within the size limit."""
        terminal = transcript.terminal
        if self._settings is None or self._vault is None or terminal is None or terminal.type != "response.completed":
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
        try:
            entry = self._entry(call, reply, frames, context)
            response_id = transcript.response.get("id")
            if isinstance(response_id, str) and call.body.get("store") is not False:
                await self._vault.note_response(
                    place, context.caller.team, response_id, ttl_s=self._settings.ttl_s
                )  # fmt: skip
            await self._vault.write(place, entry.encode(), ttl_s=self._settings.ttl_s)
        except (StoreError, orjson.JSONEncodeError) as error:
            found = str(error)[:200] if isinstance(error, StoreError) else summarize_error(error)
            log.warning("cache.write_failed", error=found)

    def _entry(self, call: Call, reply: Reply, frames: bytes, context: Context) -> Entry:
        """Return the entry of a reply. Raises JSONEncodeError for one that is nested too deeply."""
        headers = {name: value for name, value in reply.headers.items() if name.startswith(KEPT_HEADERS)}
        body = orjson.dumps(context.transcript.response) if reply.batches is not None else reply.body or b""
        labels = {"team": context.caller.team, "model": call.model, "prompt_cache_key": call.body["prompt_cache_key"]}
        return Entry(self._clock(), echoed_fields(call), headers, body, frames, labels)


def partition_of(call: Call, caller: Caller, share: str) -> Partition:
    """Return those who share the answer to a call. A stored answer has an id that no other team may continue."""
    if share == "caller":
        return Partition("caller", caller.team, caller.name)
    is_public = share == "all" and call.body.get("store") is False and call.body.get("previous_response_id") is None
    return Partition("all") if is_public else Partition("team", caller.team)


def _directives(cache_control: str) -> frozenset[str]:
    """The names of the request's cache directives. Source: https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1."""
    return frozenset(name.strip().lower().partition("=")[0] for name in cache_control.split(",")) - {""}


def _report(context: Context, outcome: str, status: str) -> None:
    """Record the outcome and return it to the caller. Source: https://www.rfc-editor.org/rfc/rfc9211."""
    context.record.cache = outcome
    context.add_header("Cache-Status", f"headgate; {status}")
