"""The identifiers of end users that upstreams receive: whose they are, and that calls with one are refused."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.callers import known_callers
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Name, Parameters
from proxy.admin.api.state import reaching_state
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.roles import OWNERS
from proxy.identity.blocking import block, blocked_identifiers, is_blocked, reason_against, unblock

MOST_END_USERS = 1_000


class NamedIdentifier(Parameters):
    identifier: Name
    """As the upstream receives it."""


class AskedIdentifier(NamedIdentifier):
    end_users: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=MOST_END_USERS)] = Field(
        default=[]
    )
    """End users, or values that callers sent for them, to try."""


class BlockedIdentifier(TypedDict):
    identifier: str
    since: str


class BlockedList(TypedDict):
    identifiers: list[BlockedIdentifier]


class IdentifierOwner(TypedDict):
    found: str | None


async def read_identifiers(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return what is blocked. Raises Problem."""
    with reaching_state():
        return await blocked_identifiers(parts.config().state)


async def change_identifier(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Block an identifier or let it pass again, or only check that this can be done. Raises Problem."""
    store, identifier = parts.config().state, argument["identifier"]
    with reaching_state():
        if argument["is_blocked"]:
            _check_possible(parts, identifier)
        elif not await is_blocked(store, identifier):
            raise Problem(404, "not_blocked", "This identifier is not blocked.")
        if not argument["is_check"]:
            await (block if argument["is_blocked"] else unblock)(store, identifier)


def _check_possible(parts: GatewayParts, identifier: str) -> None:
    """Raises Problem if it would have no effect to block an identifier."""
    config = parts.config()
    policies = [rule.policy for rule in config.rules if rule.mode != "off"]
    if reason := reason_against(policies, identifier, known_callers(parts), are_known=not config.issuers):
        raise Problem(409, "identifier_not_possible", f"The identifier was not blocked: {reason}.")


async def find_owner(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return in words whose identifier it is; None if that is not known."""
    callers = known_callers(parts)
    for rule in parts.config().rules:
        found = rule.policy.identify(argument["identifier"], callers, argument["end_users"])
        if found is not None:
            return found
    return None


async def list_identifiers(request: AdminRequest) -> BlockedList:
    """Return what is blocked, the oldest first."""
    found = await request.services.processes.one("identifiers")
    return BlockedList(identifiers=[BlockedIdentifier(since=since, identifier=name) for since, name in found])


async def block_identifier(request: AdminRequest) -> BlockedList:
    """Refuse calls with an identifier from the next one on."""
    return await _change(request, "identifier.blocked", is_blocked=True)


async def unblock_identifier(request: AdminRequest) -> BlockedList:
    """Let calls with an identifier pass again."""
    return await _change(request, "identifier.unblocked", is_blocked=False)


async def _change(request: AdminRequest, event: str, *, is_blocked: bool) -> BlockedList:
    change = {"identifier": request.body.identifier, "is_blocked": is_blocked}
    await request.services.processes.one("change_identifier", **change, is_check=True)
    await request.services.audit.record(request.operator, event, identifier=request.body.identifier)
    await request.services.processes.one("change_identifier", **change, is_check=False)
    return await list_identifiers(request)


async def identify(request: AdminRequest) -> IdentifierOwner:
    """Return whose identifier it is."""
    asked: AskedIdentifier = request.body
    return IdentifierOwner(found=await request.services.processes.one("owner_of_identifier", **asked.model_dump()))


ENDPOINTS = tuple(
    AdminEndpoint(method, path, summary, run, returns, body=body, roles=OWNERS, is_global=True)
    for method, path, summary, run, returns, body in (
        ("GET", "/identifiers", "The identifiers that are blocked", list_identifiers, BlockedList, None),
        ("POST", "/identifiers/block", "Refuse calls with one", block_identifier, BlockedList, NamedIdentifier),
        ("POST", "/identifiers/unblock", "Let them pass again", unblock_identifier, BlockedList, NamedIdentifier),
        ("POST", "/identifiers/owner", "Whose identifier one is", identify, IdentifierOwner, AskedIdentifier),
    )
)
