"""The callers that a process knows, and what of the config concerns those of one team."""

from collections.abc import Sequence

from proxy.admin.parts import GatewayParts
from proxy.context import Caller
from proxy.identity.directory import ANONYMOUS
from proxy.rules.rule import Rule
from proxy.telemetry.recent import RecentRequest


def known_callers(parts: GatewayParts) -> Sequence[Caller]:
    """Return those of the config and of issued keys, each once; a gateway without callers has one for everybody."""
    directory = parts.process.directory
    return [ANONYMOUS] if directory.is_open else [*dict.fromkeys(directory.callers())]


async def callers_of(parts: GatewayParts, team: str) -> Sequence[Caller]:
    """Return the known callers of a team, and those of its last requests: who signs in by a token is not known."""
    callers = dict.fromkeys(caller for caller in known_callers(parts) if caller.team == team)

    def add(request: RecentRequest) -> None:
        if request.fields.get("team") == team:
            callers.setdefault(Caller(str(request.fields.get("caller", "")), team))

    if team:
        await parts.recent().search(add, team)
    return [*callers]


def rules_for(parts: GatewayParts, team: str, callers: Sequence[Caller]) -> Sequence[Rule]:
    """Return the policies that may select a call of a team with these callers, or all: others name other callers."""
    rules = parts.config().rules
    if not team:
        return rules
    return [rule for rule in rules if rule.callers is None or any(rule.applies_to(caller, "") for caller in callers)]
