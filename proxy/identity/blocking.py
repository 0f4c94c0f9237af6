"""Blocked identifiers of end users, kept in `[state]`."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import orjson

from policies import Policy
from policies.support.principal import BLOCKED, blocked_key
from proxy.context import Caller
from proxy.stores import LONGEST_S, Store


def reason_against(
    policies: Iterable[Policy], identifier: str, callers: Sequence[Caller], *, are_known: bool
) -> str | None:
    """Return why blocking an identifier would have no effect under the policies; None if it may have one.

    `are_known` is whether there are no callers but these: the names of those who sign in with tokens are not known.
    """
    blocking = [policy for policy in policies if type(policy).may_send is not Policy.may_send]
    if not blocking:
        return 'no policy of this config refuses blocked identifiers; add one with use = "safety_identifier"'
    if are_known and not any(policy.may_send(identifier, callers) for policy in blocking):
        return "no call of this config can have it; give it as the upstream receives it, and as `whois` finds it"
    return None


async def block(store: Store, identifier: str) -> None:
    """Refuse all calls with an identifier from now on. Raises StoreError."""
    await store.put(blocked_key(identifier), orjson.dumps((identifier, int(time.time()))), ttl_s=LONGEST_S)


async def is_blocked(store: Store, identifier: str) -> bool:
    """Return whether an identifier is blocked. Raises StoreError."""
    return await store.get(blocked_key(identifier)) is not None


async def unblock(store: Store, identifier: str) -> None:
    """Accept calls with an identifier again. Raises StoreError."""
    await store.delete(blocked_key(identifier))


async def blocked_identifiers(store: Store) -> Sequence[tuple[str, str]]:
    """Return the time and the identifier of each block, the oldest first. Raises StoreError."""
    keys = [key async for key in store.scan(BLOCKED)]
    values = await store.get_many(keys) if keys else []
    return sorted(_listed(key, value) for key, value in zip(keys, values, strict=True) if value is not None)


def _listed(key: str, value: bytes) -> tuple[str, str]:
    try:
        identifier, at = orjson.loads(value)
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}", str(identifier)
    except (ValueError, TypeError, OverflowError):
        return "before its identifiers were kept", f"(its hash: {key.removeprefix(BLOCKED)})"
