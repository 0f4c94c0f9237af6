"""What handlers do with `[state]`: a store that cannot be reached is a problem, and a search in it ends."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.admin.problem import Problem
from proxy.stores import Store, StoreError

MOST_SECONDS = 5.0
"""How long a search for keys lasts: some stores look at all that they have."""


@contextmanager
def reaching_state() -> Iterator[None]:
    """Raises Problem inside the block where the store fails."""
    try:
        yield
    except StoreError as error:
        raise Problem(503, "state_unavailable", "The store of [state] cannot be reached at the moment.") from error


async def find_keys(store: Store, prefix: str, most: int) -> tuple[list[str], bool]:
    """Return keys with a prefix, and whether these are all: the search ends with too many of them, or after a while.

    Raises StoreError.
    """
    found: list[str] = []
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for key in store.scan(prefix):
                if len(found) >= most:
                    return found, False
                found.append(key)
    except TimeoutError:
        return found, False
    return found, True
