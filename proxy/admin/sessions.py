"""The sessions of operators in browsers: a signed cookie says who they are, and nothing is kept here.

A cookie is `PAYLOAD.SIGNATURE`, both in base64. The secret is new with each process that serves the console, so its end
signs everybody out; the times of a cookie end it as well.
"""

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.admin.roles import LOCAL, Operator

SECRET_BYTES = 32
ID_CHARS = 16
MAX_COOKIE_CHARS = 4096


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """An operator in a browser, and the token that its forms carry."""

    operator: Operator
    csrf: str


class Sessions:
    """Makes and reads the cookies of one process."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._secret = secrets.token_bytes(SECRET_BYTES)

    def open(self, operator: Operator) -> str:
        """Return the cookie of a new session."""
        fields = {"name": operator.name, "role": operator.role, "team": operator.team}
        return self.seal({**fields, "id": secrets.token_urlsafe(ID_CHARS)}, self.lifetime_s)

    def read(self, cookie: str) -> OperatorSession | None:
        """Return the session of a cookie; None for one that is not valid, or not valid any more."""
        found = self.unseal(cookie)
        if found is None or "id" not in found:
            return None
        return OperatorSession(Operator(found["name"], found["role"], found["team"]), self._csrf_of(found["id"]))

    def local(self) -> OperatorSession:
        """Return the session of everyone on this machine, where no sign-in is needed."""
        return OperatorSession(LOCAL, self._csrf_of(""))

    def seal(self, fields: dict[str, Any], lifetime_s: float) -> str:
        """Return fields as a text that only this process can have made, and that ends."""
        payload = _encode(orjson.dumps({**fields, "until": self._clock() + lifetime_s}))
        return f"{payload}.{self._sign('cookie', payload)}"

    def unseal(self, text: str) -> dict[str, Any] | None:
        """Return the fields of a sealed text that is valid."""
        if not text.isascii():  # bytes that are no UTF-8 could not even be compared
            return None
        payload, _, signature = text[:MAX_COOKIE_CHARS].partition(".")
        if not hmac.compare_digest(self._sign("cookie", payload).encode(), signature.encode()):
            return None
        try:
            fields: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, binascii.Error):
            return None
        return fields if fields["until"] > self._clock() else None

    def _csrf_of(self, session_id: str) -> str:
        return self._sign("csrf", session_id)

    def _sign(self, purpose: str, text: str) -> str:
        return _encode(hmac.digest(self._secret, f"{purpose}\0{text}".encode(), "sha256"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
