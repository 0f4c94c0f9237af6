"""The key or token in a request's headers -> Caller."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Protocol

from multidict import istr

from proxy.context import Caller
from proxy.identity.issuer_keys import IssuerKeys
from proxy.identity.key_format import has_valid_checksum
from proxy.identity.sign_in import SignIn
from proxy.identity.tokens import is_token
from proxy.wire.errors import Unauthenticated, Unavailable

ANONYMOUS = Caller("anybody", "anybody")
"""The caller of every request to a gateway without callers."""
# Source: https://www.rfc-editor.org/rfc/rfc6750#section-2.1 (b64token)
KEY = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_BEARER = re.compile(rf"Bearer +({KEY.pattern})", re.IGNORECASE | re.ASCII)
# Source: https://learn.microsoft.com/azure/ai-foundry/openai/reference#authentication
AUTHORIZATION, API_KEY, X_API_KEY = istr("Authorization"), istr("api-key"), istr("x-api-key")
BEARER = "Bearer "
MAX_KEYED = 4096
"""How many `Authorization` headers are cached: only those with one space, so that no key crowds out the others."""
WITHOUT_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using "
    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)


def fingerprint(digest: bytes) -> str:
    """Return the fingerprint of a key for the log: the beginning of its SHA-256, in hex."""
    return digest.hex()[:12]


class RequestHeaders(Protocol):
    """The headers of a request. A name may occur several times, and in any case."""

    def getall(self, key: str, default: Sequence[str]) -> Sequence[str]: ...

    def __contains__(self, key: object) -> bool: ...


@dataclass(slots=True)
class Sender:
    """A caller, its key as it was sent, the head by which it was identified, and the version of the directory."""

    head: object
    """The same for requests with equal headers but for the length of the body; None if that is not known."""
    authorization: str
    """The one header that has the key, in ASCII."""
    caller: Caller
    version: object


class IdentifiedConnection(Protocol):
    """A connection, on which one sender usually sends one request after the other with the same key.

    Its last request, which it has until the next one arrives, has that key as well.
    """

    sender: Sender | None


class Directory:
    """Finds callers by the SHA-256 of their key, so that the time of a lookup says nothing about a key."""

    def __init__(
        self,
        callers: Mapping[bytes, Caller],
        teamless: Collection[str] = (),
        *,
        has_issued: bool = False,
        sign_in: SignIn | None = None,
    ) -> None:
        """`teamless` are the names of callers without a team, whose budgets and answers no other caller shares.

        `has_issued` is whether there are keys beside those of these callers, now or later.
        """
        self.sign_in = sign_in
        self._configured, self._teamless = dict(callers), teamless
        self._issued: Mapping[bytes, Caller] = {}
        self._ended: Collection[bytes] = ()
        self._callers = self._configured
        self._teams: Mapping[str, str] = {}
        self._used: set[str] = set()
        self._has_issued = has_issued
        # By the SHA-256 of `Authorization`, which need not be taken apart again.
        self._keyed: OrderedDict[bytes, Caller] = OrderedDict()
        self._version = object()
        """A new object whenever keys are replaced: results from before are not valid any more."""
        self.is_current = True
        """Whether all issued keys are known; a key that is not known may be a new one otherwise."""
        self.is_open = not callers and not has_issued
        """Whether there are no callers, so that every client is answered without a key. It never opens later."""
        self._merge()

    def replace(
        self, callers: Mapping[bytes, Caller], teamless: Collection[str] = (), *, has_issuers: bool = False
    ) -> None:
        """Replace the callers of the config. Open WebSocket connections of removed ones end within a minute."""
        self._configured, self._teamless = dict(callers), teamless
        self.is_open = self.is_open and not callers and not has_issuers
        self._merge()

    def replace_issued(self, callers: Mapping[bytes, Caller], ended: Collection[bytes]) -> None:
        """Replace the issued keys; `ended` are those that were valid once."""
        self._issued, self._ended = callers, ended
        self._merge()

    def _merge(self) -> None:
        self._version = object()
        self._keyed.clear()
        issued, teamless = self._issued, self._teamless
        if teamless:  # there may be many thousands of keys: no calls in this loop
            issued = {key: each for key, each in issued.items() if each.team not in teamless or each.name == each.team}
        self._callers = {**issued, **self._configured}
        self._teams = {caller.name: caller.team for caller in self._callers.values()}

    def callers(self) -> Collection[Caller]:
        """Return all current callers; one with several keys occurs as often."""
        return self._callers.values()

    def take_used(self) -> Collection[str]:
        """Return the ids of the issued keys that were used since the last time."""
        used, self._used = self._used, set()
        return used

    def issuers(self) -> Sequence[IssuerKeys]:
        """Return the issuers of tokens, with their keys."""
        return () if self.sign_in is None else self.sign_in.issuers

    def report(self) -> tuple[Mapping[str, object], bool]:
        """Return the condition of issued keys and issuers for /readyz, and whether any caller can be identified."""
        issuers = {each.table.name: each.word for each in self.issuers()}
        words: dict[str, object] = {"keys": "up" if self.is_current else "down"} if self._has_issued else {}
        if issuers:
            words["issuers"] = issuers
        knows_keys = self.is_open or bool(self._callers) or (self._has_issued and self.is_current)
        return words, knows_keys or any(word != "down" for word in issuers.values())

    def identify(
        self, headers: RequestHeaders, connection: IdentifiedConnection | None = None, head: object = None
    ) -> Caller:
        """Return the caller whose key is in these headers; `connection` is that on which they came.

        `head` is one object for each head that has these headers, but for the length of the body.

        Raises Unauthenticated, Unavailable for a key that may have been issued while it cannot be looked up, and for a
        token whose signature cannot be checked at the moment.
        """
        if self.is_open:
            return ANONYMOUS
        last = None if connection is None else connection.sender
        if last is not None and last.version is not self._version:
            last = None
        if last is not None and head is not None and last.head is head:  # one that repeats the last one
            return self._note_use(last.caller)
        authorization = headers.getall(AUTHORIZATION, ())
        if API_KEY in headers or X_API_KEY in headers or len(authorization) != 1:
            return self._look_up(headers)
        sent = authorization[0]
        is_ascii = sent.isascii()  # others cannot be compared in a time that says nothing about the one that is known
        if last is not None and is_ascii and compare_digest(last.authorization, sent):
            last.head = head
            return self._note_use(last.caller)
        if (caller := self._keyed.get(_digest(sent))) is None:
            return self._look_up(headers, sent)
        if connection is not None and is_ascii:
            connection.sender = Sender(head, sent, caller, self._version)
        return self._note_use(caller)

    def _look_up(self, headers: RequestHeaders, authorization: str | None = None) -> Caller:
        """Parse the headers, and return the caller whose key they have. Raises as `identify` does.

        `authorization` is the only header with a key, if it is one of that name.
        """
        key = _key_in(headers)
        if key is not None:  # an empty key matches no caller, not even one whose key is empty
            digest = _digest(key)
            caller = self._callers.get(digest)
            if caller is not None:
                if authorization is not None and len(authorization) == len(BEARER) + len(key):
                    self._remember(_digest(authorization), caller)
                return self._note_use(caller)
            if self.sign_in is not None and self.sign_in.is_used and is_token(key):
                return self._signed_in(self.sign_in.identify(key, digest))
            if (issued := self._issued.get(digest)) is not None:
                raise _not_allowed(f"The team '{issued.team}' of this key is a caller without a team here.")
            if not self.is_current and digest not in self._ended and has_valid_checksum(key):
                raise Unavailable("The gateway cannot look up this key at the moment.", code="keys_unavailable")
        raise Unauthenticated("Incorrect API key provided.")

    def team_of(self, headers: RequestHeaders) -> str:
        """Return the team whose key these headers have, or a token that was checked lately; "" for all others.

        Nothing else is checked: it is only good for choosing whose turn it is.
        """
        try:
            key = _key_in(headers)
        except Unauthenticated:
            return ""
        digest = b"" if key is None else _digest(key)
        caller = self._callers.get(digest)
        if caller is None and self.sign_in is not None:
            caller = self.sign_in.known(digest)
        return "" if caller is None else caller.team

    def _remember(self, sent: bytes, caller: Caller) -> None:
        """Cache the caller of an `Authorization` header; the oldest entry is dropped if there are too many."""
        if len(self._keyed) >= MAX_KEYED:
            self._keyed.popitem(last=False)
        self._keyed[sent] = caller

    def _note_use(self, caller: Caller) -> Caller:
        if caller.key_id:
            self._used.add(caller.key_id)
        return caller

    def _signed_in(self, caller: Caller) -> Caller:
        """Return the caller of a token.

        Raises Unauthenticated for one whose name a key of another team has, or whose team is a teamless caller.
        """
        if self._teams.get(caller.name, caller.team) != caller.team:
            raise _not_allowed("The caller that this token names is in another team here.")
        if self._is_teamless(caller):
            raise _not_allowed("The team that this token names is a caller without a team here.")
        return caller

    def _is_teamless(self, caller: Caller) -> bool:
        """Whether its team is another caller who has none."""
        return caller.team in self._teamless and caller.name != caller.team


def _not_allowed(message: str) -> Unauthenticated:
    return Unauthenticated(f"{message} Ask the operator of this gateway.", status=403, code="token_not_allowed")


def _digest(text: str) -> bytes:
    """Return the SHA-256 of a key or a header; keys themselves are not kept."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def _key_in(headers: RequestHeaders) -> str | None:
    """Return the key in these headers; None if it cannot be one. Raises Unauthenticated unless there is exactly one."""
    authorization = headers.getall(AUTHORIZATION, ())
    is_bearer = not (API_KEY in headers or X_API_KEY in headers)
    return _bearer_key(authorization) if is_bearer else _plain_key(headers, authorization)


def _bearer_key(authorization: Sequence[str]) -> str | None:
    """Return the key in `Authorization`; None if it has none. Raises Unauthenticated unless there is one header."""
    if len(authorization) > 1:
        raise Unauthenticated("The request has more than one Authorization header; exactly one is allowed.")
    if not authorization:
        raise Unauthenticated(WITHOUT_KEY)
    match = _BEARER.fullmatch(authorization[0])
    return None if match is None else match[1]


def _plain_key(headers: RequestHeaders, authorization: Sequence[str]) -> str | None:
    """Return the key that is a whole header; None if it cannot be one. Raises Unauthenticated if there are several."""
    keys = [*headers.getall(API_KEY, ()), *headers.getall(X_API_KEY, ())]
    if len(keys) + len(authorization) > 1:
        raise Unauthenticated("The request has more than one key; exactly one header may have one.")
    return keys[0] if KEY.fullmatch(keys[0]) else None
