"""Asks a gateway for the usage of a caller."""

from typing import Any

import aiohttp


async def usage_of(
    http: aiohttp.ClientSession, gateway: str, calls: int = 1, headers: dict[str, str] | None = None, **query: str
) -> dict[str, Any]:
    """Return the answer of GET /v1/usage once this many calls are counted."""
    while True:
        async with http.get(f"{gateway}/v1/usage", params=query, headers=headers) as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            if found["total"]["calls"] >= calls:
                return found


def counted(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that are not 0."""
    return {name: number for name, number in numbers.items() if number}
