"""Keeps replies once they are complete. Faults of the store in a row are two log lines: the first, and their end."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson
import structlog

from proxy.cache.cacheable import reason_not_to_keep
from proxy.cache.entry import KEPT_HEADERS, echoed_fields, encode_entry
from proxy.cache.slot import CacheSlot, Keeping
from proxy.cache.vault import EntryAddress, Vault
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
        """Keep a reply in its slot once it is complete, if it is within the size limit.

        What was found in the cache is kept already.
        """
        if slot.address is None or reply.status != 200 or (slot.is_collapsed and slot.keeping is None):
            return
        if reply.batches is None and len(reply.body or b"") > self._max_bytes:
            return
        if context.get(FALLBACK) is not None:  # another model's answer, which the next caller need not be given
            return
        if reply.batches is not None:
            context.transcript.keep_frames(self._max_bytes, self._frame_clock)
        context.on_reply(partial(self._keep_complete, slot.address, slot.keeping, call, reply))

    async def _keep_complete(
        self, address: EntryAddress, keeping: Keeping | None, call: Call, reply: Reply, context: Context,
        transcript: Transcript,
    ) -> None:  # fmt: skip
        """Keep a reply that is complete, and is as the backend sent it."""
        if reply.batches is not None:  # of a body, its status says how it ended
            terminal = transcript.terminal
            if terminal is None or terminal.type != "response.completed":
                return
        if transcript.is_changed:  # by a rule that may not apply to the next caller
            return
        response = transcript.response
        if reason_not_to_keep(response) or context.get(NOT_KEPT):  # its id cannot be retrieved
            return
        frames = transcript.frames() if reply.batches is not None else b""
        if frames is None:  # they are beyond the size limit
            return
        if keeping is None:
            await self._write(address, call, reply, response, frames, context)
        elif keeping.is_begun:  # another call of the flight was first
            await keeping.wait()
        else:
            keeping.is_begun = True
            try:
                await self._write(address, call, reply, response, frames, context)
            finally:
                keeping.end()

    async def _write(
        self, address: EntryAddress, call: Call, reply: Reply, response: Mapping[str, Any], frames: bytes,
        context: Context,
    ) -> None:  # fmt: skip
        """Write the entry of a complete reply. A fault of the store is logged."""
        try:
            if context.is_large(len(reply.body or b"") + len(frames)):
                entry = await context.run_large(self._encode_entry, call, reply, response, frames, context)
            else:
                entry = self._encode_entry(call, reply, response, frames, context)
            named = None
            if isinstance(response_id := response.get("id"), str) and call.body.get("store") is not False:
                named = (context.caller.team, response_id)
            await self._vault.write(address, entry, ttl_s=self._kept_s, response=named)
        except orjson.JSONEncodeError as error:
            log.warning("cache.write_failed", error=summarize_error(error))
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
        headers, labels = reply.headers, {"team": context.caller.team, "model": call.model}
        if headers:
            headers = {name: value for name, value in headers.items() if name.startswith(KEPT_HEADERS)}
        if isinstance(key := call.body.get("prompt_cache_key"), str):
            labels["prompt_cache_key"] = key
        facts: dict[str, Any] = {
            "stored_at": self._clock(), "echoed": echoed_fields(call), "headers": headers, "labels": labels,
        }  # fmt: skip
        if frames and (marks := context.transcript.marks):
            facts["marks"] = marks
        return encode_entry(facts, encode(response) if reply.batches is not None else reply.body or b"", frames)
