"""Sends server-sent events to those who follow what happens, and bounds how many streams each of them has.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import web

from proxy.admin.problem import Problem
from proxy.admin.roles import Operator

MOST, MOST_OF_ONE = 16, 4
"""How many streams there may be, and of one operator: others keep connections of the listener."""
RETRY_S = 5

StillOpen = Callable[[], Awaitable[bool]]
"""Returns whether who follows may still see it. Raises Problem."""


class Followers:
    """Counts the streams of each operator."""

    def __init__(self) -> None:
        self._streams: Counter[Operator] = Counter()

    async def send(
        self, request: web.BaseRequest, events: AsyncIterator[str], headers: Mapping[str, str], operator: Operator,
        may_see: StillOpen,
    ) -> web.StreamResponse:  # fmt: skip
        """Send events until the client leaves or its session ends; none for HEAD. Raises Problem if too many follow."""
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        if request.method == "HEAD":
            return response
        self._check(operator)
        self._streams[operator] += 1
        try:
            await response.prepare(request)
            async for event in events:
                if not await _may_see(may_see):
                    break
                await response.write(event.encode())
            return response
        finally:
            self._streams[operator] -= 1
            if not self._streams[operator]:
                del self._streams[operator]

    def _check(self, operator: Operator) -> None:
        if self._streams[operator] >= MOST_OF_ONE:
            message = f"You follow {MOST_OF_ONE} streams already; close one, or ask for the numbers of now instead."
        elif self._streams.total() >= MOST:
            message = f"{MOST} streams are followed already; ask for the numbers of now instead, or later."
        else:
            return
        raise Problem(429, "too_many_followers", message, headers={"Retry-After": str(RETRY_S)})


async def _may_see(may_see: StillOpen) -> bool:
    """Whether a session is still open; one that cannot be read ends the stream, and the client asks again."""
    try:
        return await may_see()
    except Problem:
        return False
