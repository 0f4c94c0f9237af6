"""What the cache found for one call, and what is reported about it."""

import asyncio

from msgspec import Struct

from proxy.cache.entry import Entry
from proxy.cache.vault import EntryAddress
from proxy.context import Context
from proxy.wire.event import Reply


class Keeping(Struct, eq=False):
    """Which of the calls that share an answer keeps it: the first one that has all of it, whichever left before.

    `is_begun`: a call keeps it, and no other one does.
    """

    is_begun: bool = False
    _has_ended: bool = False
    _waiting: asyncio.Event | None = None  # made for the first call that waits

    def end(self) -> None:
        """Note that the answer is kept, or cannot be."""
        self.is_begun = self._has_ended = True
        if self._waiting is not None:
            self._waiting.set()

    async def wait(self) -> None:
        """Wait until the call that keeps the answer has done so."""
        if not self._has_ended:
            self._waiting = self._waiting or asyncio.Event()
            await self._waiting.wait()


class CacheSlot(Struct):
    """What the cache found for one call. With a reply no backend is called; without an address the answer is not kept.

    `is_stale`: a new answer is to be asked for beside the call. `fallback` is given if the backend fails.
    `can_be_shared`: an identical call that is in flight is the answer too; `is_collapsed`: it was. `flights_ended` is
    how many flights had ended before the lookup. `keeping` is what the calls of one flight in this process have in
    common.
    """

    address: EntryAddress | None = None
    reply: Reply | None = None
    is_stale: bool = False
    fallback: Entry | None = None
    can_be_shared: bool = False
    is_collapsed: bool = False
    flights_ended: int = 0
    keeping: Keeping | None = None


def report(context: Context, outcome: str, status: str, detail: str | None = None) -> None:
    """Record the outcome and return it to the caller. Source: https://www.rfc-editor.org/rfc/rfc9211."""
    context.record.cache, context.record.cache_detail = outcome, detail
    if context.trace.is_recording:
        reason = {} if detail is None else {"headgate.cache.reason": detail}
        context.trace.event("headgate.cache", {"headgate.cache.outcome": outcome} | reason)
        if outcome != "bypass":
            context.trace.note_work()
    context.answer_headers["Cache-Status"] = f"headgate; {status}"
