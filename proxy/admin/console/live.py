"""The part of the first page that moves: redrawn with each sample."""

from collections.abc import AsyncIterator

from proxy.admin.api.now import SILENCE_S, follow, report_now
from proxy.admin.console.render import render
from proxy.admin.services import Services


async def drawn_events(services: Services, team: str) -> AsyncIterator[str]:
    """Yield events with that part of the page, and comments where there is no sample for long."""
    async for is_new in follow(services, SILENCE_S):
        if not is_new:
            yield ": \n\n"
            continue
        lines = render("_now.html", {"report": await report_now(services, team)}).splitlines()
        yield "".join([*(f"data: {line}\n" for line in lines), "\n"])
