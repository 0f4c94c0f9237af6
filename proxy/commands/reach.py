"""Sends each backend one request and each store one write, and fetches issuers' keys: `headgate check --reach`."""

import asyncio
from collections.abc import Iterable, Mapping

from backends import Backend
from proxy.http.key_fetch import fetch_keys
from proxy.identity.issuer_table import IssuerTable, read_document
from proxy.identity.key_set import parse_key_set
from proxy.stores import PROBE_KEY, PROBE_TTL_S, Store, StoreError

STATE, CACHE = "[state]", "[cache]"
LIMIT_S = 30.0
"""How long one backend may take, in seconds: a local model is loaded meanwhile."""


async def reach(backends: Iterable[Backend]) -> Mapping[str, str | None]:
    """Return for each backend, by its name, why calls would not be answered; None if they are."""
    listed = [*backends]
    return dict(zip((each.name for each in listed), await asyncio.gather(*map(_reach, listed)), strict=True))


async def reach_issuers(issuers: Iterable[IssuerTable]) -> Mapping[str, str | None]:
    """Return for each issuer, by its name, why its keys cannot be used; None if they can."""
    listed = [*issuers]
    found = await asyncio.gather(*map(_fetch, listed))
    return dict(zip((f"issuer {each.name}" for each in listed), found, strict=True))


async def _fetch(issuer: IssuerTable) -> str | None:
    try:
        async with asyncio.timeout(issuer.timeout_s):
            parse_key_set(await fetch_keys(issuer) if issuer.jwks_file is None else read_document(issuer.jwks_file))
    except TimeoutError:
        return f"no answer within {issuer.timeout_s:g} s"
    except (OSError, ValueError) as error:
        return str(error)
    return None


async def reach_stores(stores: Mapping[str, Store]) -> Mapping[str, str | None]:
    """Return for each store, by the table that names it, why nothing could be written; None if it could.

    The reason has the error of Redis or SQLite, such as that of a user without the right to write. Values of `[state]`
    may not be evicted either.
    """
    found = await asyncio.gather(*(_write(store, is_state=name == STATE) for name, store in stores.items()))
    return dict(zip(stores, found, strict=True))


async def _write(store: Store, *, is_state: bool) -> str | None:
    try:
        async with asyncio.timeout(LIMIT_S):
            await store.start()
            try:
                if is_state:
                    await store.check_durable()
                    await store.take(f"{PROBE_KEY}:count", 1, limit=1, window_s=PROBE_TTL_S)  # a script, in Redis
                await store.check_writable()
            finally:
                await store.close()
    except StoreError as error:
        return f"a write failed: {error}"
    except (OSError, ValueError, TimeoutError) as error:
        return f"it cannot start: {error}"
    return None


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
