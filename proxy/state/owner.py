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

    def encode(self) -> bytes:
        return encode([*self])

    @staticmethod
    def decode(value: bytes | None) -> "Owner | None":
        """Return the owner in a stored value; None for one that is not ours, and for none."""
        try:
            return None if value is None else Owner(*orjson.loads(value))
        except (ValueError, TypeError):
            return None


def encoded_owner(team: str, caller: str, target: str, chain: str) -> bytes:
    """Return the value of an owner, as `Owner.encode`: of a chain's id, which has letters and digits, in two steps."""
    if not chain or (chain.isalnum() and chain.isascii()):
        return b'%b,"%b"]' % (_encoded_head(team, caller, target), chain.encode())
    return Owner(team, caller, target, chain).encode()


@lru_cache(1024)
def _encoded_head(team: str, caller: str, target: str) -> bytes:
    """Return what the values of one caller's owners begin with."""
    return encode([team, caller, target]).removesuffix(b"]")
