"""Keeps replies once they are complete. Faults of the store in a row are two log lines: the first, and their end."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson
import structlog

from proxy.cache.cacheable import reason_not_to_keep
from proxy.cache.entry import KEPT_HEADERS, Entry, echoed_fields
from proxy.cache.slot import CacheSlot, Keeping
from proxy.cache.vault import Place, Vault
from proxy.config.schema import CacheTable
from proxy.context import Context
from proxy.outage import Outage
from proxy.routing.routes import FALLBACK
from proxy.state.responses import NOT_KEPT
from proxy.stores import StoreError
from proxy.wire.call import Call
from proxy.wire.encoded import encode
from proxy.wire.event import Reply
from proxy.wire.loggable import short_message, summarize_error
from proxy.wire.transcript import Transcript

log = structlog.get_logger()


class Keeper:
    """Keeps the replies that may be given again, each for `kept_s` seconds."""

    def __init__(self, vault: Vault, settings: CacheTable, kept_s: float, clock: Callable[[], float]) -> None:
        self._vault = vault
        self._kept_s = kept_s
        self._max_bytes = settings.max_reply_bytes
        self._clock = clock
        self._writes = Outage()
        self._frame_clock = time.monotonic if settings.pace == "recorded" else None

    def keep(self, slot: CacheSlot, reply: Reply, call: Call, context: Context) -> None:
        """Keep a reply in its slot once it is complete. What was found in the cache is kept already."""
        if slot.place is None or reply.status != 200 or (slot.is_collapsed and slot.keeping is None):
            return
        if context.get(FALLBACK) is not None:  # another model's answer, which the next caller need not be given
            return
        if reply.batches is not None:
            context.transcript.keep_frames(self._max_bytes, self._frame_clock)
        context.on_reply(partial(self._keep_complete, slot.place, slot.keeping, call, reply))

    async def _keep_complete(
        self, place: Place, keeping: Keeping | None, call: Call, reply: Reply, context: Context, transcript: Transcript
    ) -> None:  # fmt: skip
        """Keep a reply that is complete, is as the backend sent it, and is within the size limit."""
        terminal, response = transcript.terminal, transcript.response
        if terminal is None or terminal.type != "response.completed" or reason_not_to_keep(response):
            return
        if transcript.is_changed:  # by a rule that may not apply to the next caller
            return
        if context.get(NOT_KEPT):  # its id cannot be retrieved
            return
        frames = transcript.frames() if reply.batches is not None else b""
        size = len(reply.body or b"")
        if frames is None or size > self._max_bytes:
            return
        if keeping is not None:
            if keeping.is_begun:  # another call of the flight was first
                await keeping.wait()
                return
            keeping.is_begun = True
        try:
            entry = await context.run(size + len(frames), self._encode_entry, call, reply, response, frames, context)
            named = None
            if isinstance(response_id := response.get("id"), str) and call.body.get("store") is not False:
                named = (context.caller.team, response_id)
            await self._write(place, entry, named)
        except orjson.JSONEncodeError as error:
            log.warning("cache.write_failed", error=summarize_error(error))
        finally:
            if keeping is not None:
                keeping.end()

    async def _write(self, place: Place, entry: bytes, response: tuple[str, str] | None) -> None:
        """Write an entry, which holds this response of a team."""
        try:
            await self._vault.write(place, entry, ttl_s=self._kept_s, response=response)
        except StoreError as error:
            if self._writes.begins():
                log.warning("cache.write_failed", error=short_message(error))
        else:
            if self._writes.failures:
                log.info("cache.write_resumed", failures=self._writes.end())

    def _encode_entry(
        self, call: Call, reply: Reply, response: Mapping[str, Any], frames: bytes, context: Context
    ) -> bytes:  # fmt: skip
        """Return the entry of a reply. Raises JSONEncodeError for one that is nested too deeply."""
        key = call.body.get("prompt_cache_key")
        headers = {name: value for name, value in reply.headers.items() if name.startswith(KEPT_HEADERS)}
        body = encode(response) if reply.batches is not None else reply.body or b""
        labels = {"team": context.caller.team, "model": call.model}
        if isinstance(key, str):
            labels["prompt_cache_key"] = key
        marks = context.transcript.marks if frames else ()
        return Entry(self._clock(), call.fact(echoed_fields), headers, body, frames, labels, marks).encode()
