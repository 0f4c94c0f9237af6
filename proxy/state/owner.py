"""The owner of an id, as it is in the store."""

from functools import lru_cache
from typing import NamedTuple

import orjson

from proxy.wire.encoded import encode


class Owner(NamedTuple):
    """The team and the caller that own an id, and the backend that keeps the object."""

    team: str
    caller: str
    target: str
    chain: str
    """Empty if nothing was continued or counted: a chain that begins with it is named by its id then."""

    def encode(self) -> bytes:
        return encode([*self])

    @staticmethod
    def decode(value: bytes | None) -> "Owner | None":
        """Return the owner in a stored value; None without a value, or for one that the gateway did not write."""
        try:
            return None if value is None else Owner(*orjson.loads(value))
        except (ValueError, TypeError):
            return None


@lru_cache(1024)
def encoded_owner(team: str, caller: str, target: str) -> bytes:
    """Return the stored value of an owner without a chain, which is the same for most ids of a caller."""
    return Owner(team, caller, target, "").encode()
