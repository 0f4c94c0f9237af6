"""The sessions of operators in browsers: a cookie is a random token, and `[state]` has under its hash who it is.

So a session is valid at every gateway that shares the state, and ends at all of them at once: by signing out, by an
owner, by its time, or when the config does not let in any more who has begun it. A copy of the state opens none: tokens
are kept as hashes, and what is kept is signed with the operator's key.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from proxy.admin.entrances import Entrances, SignedIn, sign
from proxy.admin.processes import Processes
from proxy.admin.roles import LOCAL, Operator

TOKEN_BYTES = 32
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
FIELDS = frozenset({"name", "team", "claim", "opened"})


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """An operator in a browser, and the token that its forms carry."""

    operator: Operator
    csrf: str
    id: str = ""
    """Under which it is kept; empty where no sign-in is needed."""


class Sessions:
    """Opens and closes sessions, and finds who has one."""

    def __init__(
        self, entrances: Entrances, lifetime_s: float, processes: Processes, clock: Callable[[], float] = time.time
    ) -> None:
        self.lifetime_s = lifetime_s
        self._entrances = entrances
        self._processes = processes
        self._clock = clock
        self._local = secrets.token_urlsafe(TOKEN_BYTES)

    async def open(self, entry: SignedIn) -> str:
        """Return the cookie of a new session. Raises Problem."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        key, fields = _id_of(token), {**entry.fields, "opened": self._clock()}
        kept = {**fields, "proof": sign(entry.secret, _signed(key, fields))}
        await self._processes.one("open_session", id=key, kept=kept, ttl_s=self.lifetime_s)
        return token

    async def read(self, token: str) -> OperatorSession | None:
        """Return the session of a cookie; None for one that is not valid, or not valid any more. Raises Problem."""
        if not TOKEN.fullmatch(token):
            return None
        operator = await self.operator_of(_id_of(token))
        return None if operator is None else OperatorSession(operator, _csrf_of(token), _id_of(token))

    async def operator_of(self, session_id: str) -> Operator | None:
        """Return who has a session, with the role that the config gives now. Raises Problem."""
        kept = await self._processes.one("read_session", id=session_id)
        if kept is None or kept["opened"] + self.lifetime_s <= self._clock():
            return None
        fields = {name: kept[name] for name in FIELDS}
        return self._entrances.again(fields, kept["proof"], _signed(session_id, fields))

    async def is_open(self, session: OperatorSession) -> bool:
        """Whether a session is still that of the same operator. Raises Problem."""
        return not session.id or await self.operator_of(session.id) == session.operator

    async def close(self, session: OperatorSession) -> None:
        """End a session at every gateway. Raises Problem."""
        if session.id:
            await self._processes.one("close_session", id=session.id)

    def local(self) -> OperatorSession:
        """Return the session of everyone on this machine, where no sign-in is needed."""
        return OperatorSession(LOCAL, _csrf_of(self._local))


def _id_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _csrf_of(token: str) -> str:
    return base64.urlsafe_b64encode(hmac.digest(token.encode(), b"csrf", "sha256")).decode()


def _signed(session_id: str, fields: dict[str, object]) -> bytes:
    return orjson.dumps([session_id, fields], option=orjson.OPT_SORT_KEYS)
