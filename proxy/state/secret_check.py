"""Starts sealing, and detects that [state] was written with another secret or without one."""

import asyncio
from contextlib import suppress

import structlog
from pydantic import SecretStr

from proxy.ciphers import VERSION, derive_key
from proxy.state.sealing import Sealing
from proxy.stores import LONGEST_S, Store, StoreError
from proxy.stores.memory import MemoryStore

log = structlog.get_logger()

MARK = "headgate:state-secret"  # the key under which it is noted with which secret a state is written
PLAIN, SEALED = b"plain", b"sealed"
RECORDS = "headgate:response:"
SEARCH_S = 2.0
"""How long a state without the mark is searched for a response that shows how it was written, in seconds."""


async def start_sealing(secret: SecretStr | None, store: Store, *, is_open: bool) -> Sealing:
    """Start and return the sealing. Without callers and a durable state a lost key has no consequence."""
    sealing = Sealing(secret, store)
    if not is_open or not isinstance(store, MemoryStore):
        await sealing.start()
        await check_secret(secret, store)
    return sealing


async def check_secret(secret: SecretStr | None, store: Store) -> None:
    """Log an error if the secret of a state has changed since the last start; note the one that it is written with now.

    Without the mark, which older versions did not write, a response shows whether they had a secret. A store that fails
    is asked at the next start.
    """
    own = PLAIN if secret is None else derive_key(secret.get_secret_value().encode(), "mark").hex().encode()
    with suppress(StoreError):
        before = await store.get(MARK)
        if before == own:
            return
        before = before or await _form_of_responses(store)
        await store.put(MARK, own, ttl_s=LONGEST_S)
        if before is not None and before != (PLAIN if secret is None else SEALED):
            log.error(
                "state.secret_changed",
                reason="it had none" if before == PLAIN else "it has none now" if secret is None else "it was another",
                consequence="stored responses, conversations and events from before are unknown until it is set back",
            )


async def _form_of_responses(store: Store) -> bytes | None:
    """Return how responses are stored; None if there is none, or none is found in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SEARCH_S):
            async for key in store.scan(RECORDS):
                if value := await store.get(key):
                    return SEALED if value.startswith(VERSION) else PLAIN
    return None
