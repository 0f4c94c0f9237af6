"""Identifiers of who stands behind a call: the same one each time, and nobody's name to whoever lacks the key."""

import base64
import hashlib
import hmac

from proxy.context import Caller


def identifier_of(key: bytes, caller: Caller, end_user: str = "") -> str:
    """HMAC-SHA256 over team, caller and end user: 43 characters of base64url."""
    return _signed(key, "principal", caller.team, caller.name, end_user)


def hashed(key: bytes, team: str, value: str) -> str:
    """HMAC-SHA256 over a value that a team's caller chose: 43 characters of base64url."""
    return _signed(key, "value", team, value)


def blocked_key(identifier: str) -> str:
    """The key under which a store remembers that an identifier is blocked."""
    return f"headgate:blocked:{hashlib.blake2b(_bytes(identifier), digest_size=32).hexdigest()}"


def _signed(key: bytes, purpose: str, *parts: str) -> str:
    """Each part has its length before it, so that no two principals meet in one identifier."""
    message = b"headgate safety_identifier 1"
    for part in (purpose, *parts):
        encoded = _bytes(part)
        message += len(encoded).to_bytes(8) + encoded
    return base64.urlsafe_b64encode(hmac.digest(key, message, hashlib.sha256)).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """UTF-8, also of what is none: servers read bytes of a header that are no UTF-8 as lone surrogates."""
    return text.encode(errors="surrogatepass")
