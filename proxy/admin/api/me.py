"""Who is signed in."""

from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest


class OperatorFacts(TypedDict):
    name: str
    role: str
    team: str


async def get_me(request: AdminRequest) -> OperatorFacts:
    """Return the operator."""
    operator = request.operator
    return OperatorFacts(name=operator.name, role=operator.role, team=operator.team)


ENDPOINTS = (AdminEndpoint("GET", "/me", "Who you are to the gateway", get_me, OperatorFacts),)
