"""The targets of routes: how they are, and that one is taken out of use by hand."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.roles import OWNERS
from proxy.admin.services import Services

STATES = ("closed", "half-open", "open")
"""Of a breaker, the better first."""


class AttemptCount(TypedDict):
    status: int
    code: str | None
    count: int


class TargetHealth(TypedDict):
    name: str
    provider: str
    address: str | None
    routes: list[str]
    processes: int
    breaker: str
    open_for_s: float
    limited_for_s: float
    drained: bool
    fault: str | None
    in_flight: int
    waiting: int
    ejections: int
    attempts: list[AttemptCount]


class TargetList(TypedDict):
    targets: list[TargetHealth]


async def read_targets(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return what this process knows of each target of its config."""
    pipeline, now = parts.pipeline(), asyncio.get_running_loop().time()
    routes = parts.config().routes
    found = []
    for name, backend in parts.config().backends.items():
        target = pipeline.attempts.targets.of(backend)
        found.append(
            {
                "name": name,
                "provider": backend.provider,
                "address": backend.address,
                "routes": [route.name for route in routes if backend in route.targets],
                "breaker": target.breaker.state(now),
                "open_for_s": round(max(0.0, target.breaker.open_until - now), 1),
                "limited_for_s": round(max(0.0, target.limited_until - now), 1),
                "drained": target.is_drained,
                "fault": target.fault,
                "in_flight": target.in_flight,
                "waiting": 0 if target.places is None else target.places.waiting,
                "ejections": target.ejections,
                "attempts": [[status, code, count] for (status, code), count in target.attempts.items()],
            }
        )
    return found


async def drain(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Send targets no new calls, or send them calls again; return which of them this process has."""
    targets, backends = parts.process.targets, parts.config().backends
    for name in argument["names"]:
        targets.drain(name, is_drained=argument["is_drained"])
    return [name for name in argument["names"] if name in backends]


async def health_of_targets(services: Services) -> list[TargetHealth]:
    """Return what all processes know of each target."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for one in await services.processes.all("targets"):
        for target in one:
            by_name.setdefault(target["name"], []).append(target)
    return [_merged(each) for each in by_name.values()]


def _merged(known: list[dict[str, Any]]) -> TargetHealth:
    """Return one target as the processes together know it: the worst state, and sums."""
    attempts: Counter[tuple[int, str | None]] = Counter()
    for one in known:
        for status, code, count in one["attempts"]:
            attempts[status, code] += count
    sums = {name: sum(one[name] for one in known) for name in ("in_flight", "waiting", "ejections")}
    most = {name: max(one[name] for one in known) for name in ("open_for_s", "limited_for_s")}
    listed = [AttemptCount(status=status, code=code, count=count) for (status, code), count in attempts.most_common()]
    merged: Any = {
        **known[0], **sums, **most, "processes": len(known), "attempts": listed,
        "breaker": max((one["breaker"] for one in known), key=STATES.index),
        "drained": all(one["drained"] for one in known),
        "fault": next((one["fault"] for one in known if one["fault"]), None),
    }  # fmt: skip
    health: TargetHealth = merged
    return health


async def list_targets(request: AdminRequest) -> TargetList:
    """Return all targets."""
    return TargetList(targets=await health_of_targets(request.services))


async def drain_target(request: AdminRequest) -> TargetList:
    """Send a target no new calls of models; those that run there end as they would."""
    return await _set_drained(request, is_drained=True)


async def undrain_target(request: AdminRequest) -> TargetList:
    """Send a target calls again."""
    return await _set_drained(request, is_drained=False)


async def _set_drained(request: AdminRequest, *, is_drained: bool) -> TargetList:
    services, name = request.services, request.values["name"]
    if name not in {target["name"] for target in await health_of_targets(services)}:
        raise Problem(404, "unknown_target", "There is no backend with this name.")
    event = "target.drained" if is_drained else "target.restored"
    await services.audit.record(request.operator, event, target=name)
    (services.drained.add if is_drained else services.drained.discard)(name)
    await services.processes.all("drain", names=[name], is_drained=is_drained)
    return await list_targets(request)


ENDPOINTS = (
    AdminEndpoint("GET", "/targets", "How each target is", list_targets, TargetList, is_global=True),
    AdminEndpoint(
        "POST", "/targets/{name}/drain", "Send a target no new calls", drain_target, TargetList, roles=OWNERS,
        is_global=True,
    ),
    AdminEndpoint(
        "DELETE", "/targets/{name}/drain", "Send a target calls again", undrain_target, TargetList, roles=OWNERS,
        is_global=True,
    ),
)  # fmt: skip
