"""The owner of an id, as it is in the store."""

from functools import lru_cache
from typing import NamedTuple

import orjson

from proxy.wire.encoded import encode


class Owner(NamedTuple):
    """Whose an id is, and the backend that keeps what it names."""

    team: str
    caller: str
    target: str
    chain: str
    """Empty if nothing was continued or counted: a chain that begins with it is named by its id then."""

    def encode(self) -> bytes:
        return encode([*self])

    @staticmethod
    def decode(value: bytes | None) -> "Owner | None":
        """Return the owner in a stored value; None for one that is not ours, and for none."""
        try:
            return None if value is None else Owner(*orjson.loads(value))
        except (ValueError, TypeError):
            return None


@lru_cache(1024)
def encoded_owner(team: str, caller: str, target: str) -> bytes:
    """Return the value of an owner without a chain: it is the same for almost all that a caller receives."""
    return Owner(team, caller, target, "").encode()
