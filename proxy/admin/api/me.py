"""Who is signed in, and to which gateway."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest
from proxy.admin.parts import GatewayParts
from proxy.admin.state_id import state_id


class OperatorFacts(TypedDict):
    name: str
    role: str
    team: str
    state: str


async def read_state(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return a name for where the state is."""
    return state_id(parts.config().tables)


async def get_me(request: AdminRequest) -> OperatorFacts:
    """Return the operator, and a name for where the gateway keeps its state: commands compare it with their config."""
    operator = request.operator
    state = await request.services.processes.one("state")
    return OperatorFacts(name=operator.name, role=operator.role, team=operator.team, state=state)


ENDPOINTS = (AdminEndpoint("GET", "/me", "Who you are to the gateway", get_me, OperatorFacts),)
