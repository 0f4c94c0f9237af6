"""The Authorization header -> Caller."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from proxy.context import Caller
from proxy.wire.errors import Unauthenticated

ANONYMOUS = Caller("anybody", "anybody")
"""The caller of every request to a gateway without callers."""
# Source: https://www.rfc-editor.org/rfc/rfc6750#section-2.1 (b64token)
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_BEARER = re.compile(rf"Bearer +({KEY.pattern})", re.IGNORECASE | re.ASCII)


class Directory:
    """Knows callers by the SHA-256 of their key: how long a lookup takes says nothing about a key."""

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        self._callers = dict(callers)
        self.is_open = not callers
        """Whether there are no callers, so that every client is answered without a key. It never opens later."""

    def replace(self, callers: Mapping[bytes, Caller]) -> None:
        """Know these callers from now on. Open WebSocket connections of others end within a minute."""
        self._callers = dict(callers)

    def identify(self, authorization: Sequence[str]) -> Caller:
        """Return the caller that these values of the Authorization header name. Raises Unauthenticated."""
        if self.is_open:
            return ANONYMOUS
        if not authorization:
            raise Unauthenticated(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        if len(authorization) > 1:
            raise Unauthenticated("The request has more than one Authorization header; exactly one is allowed.")
        match = _BEARER.fullmatch(authorization[0])
        if match is not None:  # an empty key matches no caller, not even one whose key is empty
            caller = self._callers.get(hashlib.sha256(match[1].encode()).digest())
            if caller is not None:
                return caller
        raise Unauthenticated("Incorrect API key provided. Ask the operator of this gateway for a key.")
