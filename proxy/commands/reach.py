"""Sends each backend one request, as `headgate check --reach` does."""

import asyncio
from collections.abc import Iterable, Mapping

from backends import Backend

LIMIT_S = 30.0
"""How long one backend may take, in seconds: a local model is loaded meanwhile."""


async def reach(backends: Iterable[Backend]) -> Mapping[str, str | None]:
    """Return for each backend, by its name, why calls would not be answered; None if they are."""
    listed = [*backends]
    return dict(zip((each.name for each in listed), await asyncio.gather(*map(_reach, listed)), strict=True))


async def _reach(backend: Backend) -> str | None:
    try:
        async with asyncio.timeout(LIMIT_S):
            await backend.start()
            try:
                return await backend.reach()
            finally:
                await backend.close()
    except TimeoutError:
        return f"no answer within {LIMIT_S:g} s"
    except (OSError, ValueError) as error:
        return f"it cannot start: {error}"
