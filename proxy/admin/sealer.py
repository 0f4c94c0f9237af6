"""Seals fields as a text that browsers keep for a while and cannot change: `PAYLOAD.SIGNATURE`, both in base64."""

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any

import orjson

SECRET_BYTES = 32
MAX_CHARS = 4096


class Sealer:
    """Seals with a secret; without one of others with its own, so that only this process reads what it has sealed."""

    def __init__(self, secret: str = "", clock: Callable[[], float] = time.time) -> None:
        own = secret.encode() or secrets.token_bytes(SECRET_BYTES)
        self._secret = hmac.digest(own, b"headgate sealer", "sha256")
        self._clock = clock

    def seal(self, fields: dict[str, Any], lifetime_s: float) -> str:
        """Return fields as a text that is valid for some seconds."""
        payload = _encode(orjson.dumps({**fields, "until": self._clock() + lifetime_s}))
        return f"{payload}.{self._sign(payload)}"

    def unseal(self, text: str) -> dict[str, Any] | None:
        """Return the fields of a sealed text that is valid."""
        if not text.isascii():  # bytes that are no UTF-8 could not even be compared
            return None
        payload, _, signature = text[:MAX_CHARS].partition(".")
        if not hmac.compare_digest(self._sign(payload).encode(), signature.encode()):
            return None
        try:
            fields: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, binascii.Error):
            return None
        return fields if fields["until"] > self._clock() else None

    def _sign(self, payload: str) -> str:
        return _encode(hmac.digest(self._secret, payload.encode(), "sha256"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
