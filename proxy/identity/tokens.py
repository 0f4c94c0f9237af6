"""Signed tokens: what one says, and whether that holds. Source: RFC 7519, RFC 8725.

Nothing in a token says how it is checked: algorithms and audiences are those of the config, keys those of the issuer's
own documents; addresses and keys in its header are not read.
"""

import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from jwt import PyJWS
from jwt.exceptions import PyJWTError

from proxy.identity.key_set import ALGORITHMS, VerificationKey
from proxy.wire.bounds import has_more_values
from proxy.wire.errors import Unauthenticated

MAX_TOKEN_CHARS = 65_536
MAX_HEADER_CHARS = 4096
MAX_KEY_ID_CHARS = 256
MAX_VALUES = 2000
"""How many values a part of a token may have: it is read before its signature is checked, so anyone can send one."""
EXTENSIONS = ("crit", "b64", "zip", "enc")
"""What changes how the rest of a token is read: nothing of it is supported, so no token may have it."""
_JWS = PyJWS(algorithms=ALGORITHMS)


@dataclass(frozen=True, slots=True)
class UncheckedToken:
    """What a token says, before its signature was checked."""

    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]

    @property
    def issuer(self) -> str:
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else ""


def is_token(key: str) -> bool:
    """Whether what was sent as a key has the form of a signed token."""
    return key.count(".") == 2


def read_token(token: str) -> UncheckedToken:
    """Return what a token says. Raises Unauthenticated for what is no token."""
    header_part, _, rest = token.partition(".")
    payload_part, _, _ = rest.partition(".")
    if len(token) > MAX_TOKEN_CHARS or len(header_part) > MAX_HEADER_CHARS:
        raise invalid("it is too long")
    header, claims = _read_object(header_part), _read_object(payload_part)
    algorithm, key_id = header.get("alg"), header.get("kid")
    if any(name in header for name in EXTENSIONS):
        raise invalid("its header has an extension that is not supported")
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None) or len(key_id or "") > MAX_KEY_ID_CHARS:
        raise invalid("its header names no algorithm, or no key")
    return UncheckedToken(algorithm, key_id, claims)


def has_signed(key: VerificationKey, token: str, algorithm: str) -> bool:
    """Whether a token was signed with this key; its algorithm is one that the config accepts."""
    try:
        _JWS.decode_complete(token, key.key, algorithms=[algorithm])
    except (PyJWTError, ValueError, TypeError):
        return False
    return True


def check_claims(claims: Mapping[str, Any], audiences: Sequence[str], now: float, skew_s: float) -> float:
    """Return when a token ends, on the clock. Raises Unauthenticated for one that is not valid now or here."""
    ends_at = _time(claims, "exp")
    if ends_at is None:
        raise invalid("it has no time of expiry")
    if now >= ends_at + skew_s:
        raise expired()
    for name in ("nbf", "iat"):
        begins_at = _time(claims, name)
        if begins_at is not None and now < begins_at - skew_s:
            raise invalid("it is not valid yet")
    check_audience(claims, audiences)
    return ends_at + skew_s


def check_audience(claims: Mapping[str, Any], audiences: Sequence[str]) -> None:
    """Raises Unauthenticated for a token that is for others."""
    named = claims.get("aud")
    found = named if isinstance(named, list) else [named]
    if not any(isinstance(each, str) and each in audiences for each in found):
        raise invalid("it is for another audience")


def invalid(reason: str) -> Unauthenticated:
    """Return the error for a token that does not hold."""
    message = f"This token is not valid here: {reason}. Sign in again, or ask the operator of this gateway."
    return Unauthenticated(message, code="invalid_token", challenge='Bearer error="invalid_token"')


def expired() -> Unauthenticated:
    """Return the error for a token that was valid."""
    message = "This token has expired. Sign in again to get a new one."
    return Unauthenticated(message, code="token_expired", challenge='Bearer error="invalid_token"')


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a time of a token; None if it has none. Raises Unauthenticated for what is no time."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise invalid(f"its {name} is no time")
    return float(value)


def _read_object(part: str) -> dict[str, Any]:
    """Return a part of a token. Raises Unauthenticated for what is no JSON object, or has a name twice."""
    try:
        data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
        if has_more_values(data, MAX_VALUES):
            raise invalid(f"a part of it has more than {MAX_VALUES} values")
        found = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError, OverflowError):
        raise invalid("it is not in the form of a signed token") from None
    if not isinstance(found, dict):
        raise invalid("it is not in the form of a signed token")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(name)
