"""Sends server-sent events to those who follow what happens, and bounds how many they are.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from proxy.admin.problem import Problem

MOST = 8
"""How many may follow at once: others keep connections of the listener."""


class Followers:
    """Counts those who follow."""

    def __init__(self) -> None:
        self._count = 0

    async def send(
        self, request: web.BaseRequest, events: AsyncIterator[str], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Send events until the client leaves; none for HEAD. Raises Problem if too many follow."""
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        if request.method == "HEAD":
            return response
        if self._count >= MOST:
            raise Problem(503, "too_many_followers", "Too many follow already; ask for the numbers of now instead.")
        self._count += 1
        try:
            await response.prepare(request)
            async for event in events:
                await response.write(event.encode())
            return response
        finally:
            self._count -= 1
