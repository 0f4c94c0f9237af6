"""headers -> Caller."""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

from proxy.context import Caller
from proxy.wire.errors import Unauthenticated

ANYBODY = Caller("anybody", "anybody")
# Source: https://www.rfc-editor.org/rfc/rfc6750#section-2.1 (b64token)
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_BEARER = re.compile(rf"Bearer +({KEY.pattern})", re.IGNORECASE | re.ASCII)


class Identify:
    """Looks callers up by the SHA-256 of their key. With no callers at all, everybody is `anybody`."""

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        self._callers = dict(callers)

    def __call__(self, authorization: Sequence[str]) -> Caller:
        """The caller that these values of the Authorization header name. Raises Unauthenticated."""
        if not self._callers:
            return ANYBODY
        if not authorization:
            raise Unauthenticated(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        if len(authorization) > 1:
            raise Unauthenticated("The request has more than one Authorization header; exactly one is read.")
        match = _BEARER.fullmatch(authorization[0])
        if match is not None:  # what is no key at all is nobody's, not even theirs whose key is empty
            digest = hashlib.sha256(match[1].encode()).digest()
            for known, caller in self._callers.items():
                if hmac.compare_digest(known, digest):
                    return caller
        raise Unauthenticated("Incorrect API key provided. Ask whoever runs this gate for a key.")
