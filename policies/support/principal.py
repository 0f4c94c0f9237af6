"""Derives the identifier that an upstream receives for a caller: always the same, and meaningless without the key."""

import base64
import hashlib
import hmac
import re

from proxy.context import Caller

DERIVED = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
"""The form of derived identifiers and hashed values."""
BLOCKED = "headgate:blocked:"


def derive_identifier(key: bytes, caller: Caller, end_user: str = "") -> str:
    """Return the HMAC-SHA256 of team, caller and end user as 43 characters of base64url."""
    return _sign(key, "principal", caller.team, caller.name, end_user)


def hash_value(key: bytes, team: str, value: str) -> str:
    """Return the HMAC-SHA256 of a value that a caller of this team sent, as 43 characters of base64url."""
    return _sign(key, "value", team, value)


def blocked_key(identifier: str) -> str:
    """Return the store key of a blocked identifier."""
    return f"{BLOCKED}{hashlib.blake2b(_encode(identifier), digest_size=32).hexdigest()}"


def _sign(key: bytes, purpose: str, *parts: str) -> str:
    """Return the HMAC of the parts. Each is preceded by its length: different parts never form the same message."""
    message = b"headgate safety_identifier 1"
    for part in (purpose, *parts):
        encoded = _encode(part)
        message += len(encoded).to_bytes(8) + encoded
    return base64.urlsafe_b64encode(hmac.digest(key, message, hashlib.sha256)).rstrip(b"=").decode()


def _encode(text: str) -> bytes:
    """Return a text in UTF-8, lone surrogates included: servers read bytes of a header that are not UTF-8 as those."""
    return text.encode(errors="surrogatepass")
