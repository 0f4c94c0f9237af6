"""The part of the first page that moves: drawn anew with each sample, and sent as server-sent events.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from aiohttp import web

from proxy.admin.api.now import follow, report_now
from proxy.admin.console.render import HEADERS, render
from proxy.admin.problem import Problem
from proxy.admin.services import Services

MOST = 8
"""How many pages may follow at once: others keep connections of the listener."""
SILENCE_S = 15.0
"""After how long without a sample a comment is sent, in seconds."""


class Live:
    """Sends what moves to the pages that are open."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._count = 0

    async def answer(self, request: web.BaseRequest, team: str) -> web.StreamResponse:
        """Send events until the browser leaves. Raises Problem if too many follow."""
        if self._count >= MOST:
            raise Problem(503, "too_many_followers", "Too many pages follow; load this one again to see more.")
        self._count += 1
        try:
            response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
            await response.prepare(request)
            async for is_new in follow(self._services, SILENCE_S):
                await response.write(await self._event(team) if is_new else b": \n\n")
            return response
        finally:
            self._count -= 1

    async def _event(self, team: str) -> bytes:
        report = await report_now(self._services, team)
        lines = render("_now.html", {"report": report}).splitlines()
        return "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()
