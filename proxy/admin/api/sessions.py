"""The sessions of operators in browsers: who is signed in, and that all sessions of one are ended."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import orjson
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Name, Parameters
from proxy.admin.api.formats import as_time
from proxy.admin.api.state import find_keys, reaching_state
from proxy.admin.parts import GatewayParts
from proxy.admin.roles import OWNERS

SESSION, ROUND = "headgate:operator-session:", "headgate:operator-round:"
LONGEST_S = 8 * 86_400.0
"""Longer than any session may last."""
MOST = 1000


class SessionFacts(TypedDict):
    operator: str
    team: str
    signed_in_by: str
    opened: str | None


class SessionList(TypedDict):
    sessions: list[SessionFacts]
    is_complete: bool


class SessionEnd(Parameters):
    operator: Name
    """Whose sessions are ended, on all gateways that share [state]."""


class EndedSessions(TypedDict):
    operator: str


def _round_key(name: str) -> str:
    """Return the key of what is written when all sessions of an operator are ended: those before it have another."""
    return f"{ROUND}{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()}"


async def open_session(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Keep a session. Raises Problem."""
    store, kept = parts.config().state, argument["kept"]
    with reaching_state():
        current = await store.get(_round_key(kept["name"]))
        value = orjson.dumps([None if current is None else current.decode(), kept])
        await store.put(f"{SESSION}{argument['id']}", value, ttl_s=argument["ttl_s"])


async def read_session(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what is kept of a session; None for one that has ended. Raises Problem."""
    with reaching_state():
        value = await parts.config().state.get(f"{SESSION}{argument['id']}")
        return None if value is None else await _valid(parts, value)


async def _valid(parts: GatewayParts, value: bytes) -> Mapping[str, Any] | None:
    """Return what is kept, unless all sessions of its operator were ended since. Raises StoreError."""
    opened_in, kept = orjson.loads(value)
    current = await parts.config().state.get(_round_key(kept["name"]))
    return kept if current is None or current.decode() == opened_in else None


async def close_session(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """End a session. Raises Problem."""
    with reaching_state():
        await parts.config().state.delete(f"{SESSION}{argument['id']}")


async def end_sessions(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """End all sessions of an operator, those included that are opened at this moment. Raises Problem."""
    with reaching_state():
        await parts.config().state.put(_round_key(argument["name"]), secrets.token_hex(16).encode(), ttl_s=LONGEST_S)


async def read_sessions(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return what is kept of the sessions that have not ended. Raises Problem."""
    store = parts.config().state
    with reaching_state():
        keys, is_complete = await find_keys(store, SESSION, MOST)
        values = await store.get_many(keys) if keys else []
        found = [await _valid(parts, value) for value in values if value is not None]
    return {"sessions": [kept for kept in found if kept is not None], "is_complete": is_complete}


async def list_sessions(request: AdminRequest) -> SessionList:
    """Return who is signed in, the newest first."""
    found = await request.services.processes.one("sessions")
    kept = sorted(found["sessions"], key=lambda each: float(each["opened"]), reverse=True)
    sessions = [
        SessionFacts(
            operator=each["name"], team=each["team"], signed_in_by="issuer" if each["claim"] else "key",
            opened=as_time(each["opened"]),
        )
        for each in kept
    ]  # fmt: skip
    return SessionList(sessions=sessions, is_complete=found["is_complete"])


async def end_all_sessions(request: AdminRequest) -> EndedSessions:
    """End all sessions of an operator; one who may still sign in can open another one."""
    name = request.body.operator
    await request.services.audit.record(request.operator, "operator.sessions_ended", of=name)
    await request.services.processes.one("end_sessions", name=name)
    return EndedSessions(operator=name)


ENDPOINTS = (
    AdminEndpoint(
        "GET", "/sessions", "Who is signed in to the console", list_sessions, SessionList, roles=OWNERS,
        is_global=True,
    ),
    AdminEndpoint(
        "POST", "/sessions/end", "End all sessions of an operator", end_all_sessions, EndedSessions, body=SessionEnd,
        roles=OWNERS, is_global=True,
    ),
)  # fmt: skip
