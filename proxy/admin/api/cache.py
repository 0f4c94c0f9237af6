"""The cache: how often it answers, what that saves, and that entries are removed."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, model_validator
from typing_extensions import TypedDict

from proxy.admin.api.callers import known_callers
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Name, Parameters
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.roles import MANAGERS
from proxy.admin.samples import HITS, LOOKED_UP
from proxy.cache.purge import partitions_of, purge
from proxy.stores import StoreError
from proxy.telemetry import metrics
from proxy.telemetry.instruments import Metric, Snapshot


class PurgeOrder(Parameters):
    """What the entries have that are removed; at least one of it."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    team: Name = ""
    model: Name = ""
    prompt_cache_key: Name = ""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name what to remove: a team, a model or a prompt_cache_key")
        return self


class CacheOutcome(TypedDict):
    outcome: str
    reason: str
    count: float


class CacheReport(TypedDict):
    is_on: bool
    lookups: float
    hits: float
    hit_ratio: float | None
    saved_usd: float
    saved_tokens: float
    served_bytes: float
    outcomes: list[CacheOutcome]


class PurgeReport(TypedDict):
    removed: int


async def purge_entries(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Remove entries from the cache of this process; return how many. Raises Problem."""
    vault = parts.pipeline().cache.vault
    if vault is None:
        raise Problem(409, "no_cache", "The config has no [cache].")
    wanted = argument["wanted"]
    try:
        return await purge(vault, partitions_of(known_callers(parts), wanted.get("team")), wanted)
    except StoreError as error:
        raise Problem(503, "cache_unavailable", "The store of [cache] cannot be reached at the moment.") from error


async def get_cache(request: AdminRequest) -> CacheReport:
    """Return what the cache has done since the start, for the operator's team or for all."""
    snapshot, team = await request.services.processes.snapshot(), request.operator.team
    counts: dict[tuple[str, str], float] = {}
    for labels, value in _of_team(snapshot, metrics.CACHE_LOOKUPS, team).items():
        named = dict(zip(metrics.CACHE_LOOKUPS.labels, labels, strict=True))
        key = named["headgate.cache.outcome"], named["headgate.cache.reason"]
        counts[key] = counts.get(key, 0.0) + value
    lookups = sum(count for (outcome, _), count in counts.items() if outcome in LOOKED_UP)
    hits = sum(count for (outcome, _), count in counts.items() if outcome in HITS)
    sums = [
        sum(_of_team(snapshot, metric, team).values())
        for metric in (metrics.SAVED_COST, metrics.CACHE_TOKENS, metrics.CACHE_BYTES)
    ]
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return CacheReport(
        is_on=request.services.config.cache is not None, lookups=lookups, hits=hits,
        hit_ratio=round(hits / lookups, 4) if lookups else None, saved_usd=round(sums[0], 6), saved_tokens=sums[1],
        served_bytes=sums[2],
        outcomes=[CacheOutcome(outcome=outcome, reason=reason, count=count) for (outcome, reason), count in ordered],
    )  # fmt: skip


def _of_team(snapshot: Snapshot, metric: Metric, team: str) -> dict[Any, float]:
    """Return the series of a counter that belong to one team, or all of them."""
    place = metric.labels.index(metrics.TEAM)
    return {
        labels: value
        for labels, value in snapshot.get(metric, {}).items()
        if isinstance(value, float | int) and team in ("", labels[place])
    }


async def purge_cache(request: AdminRequest) -> PurgeReport:
    """Remove the entries that all of what is named applies to."""
    order: PurgeOrder = request.body
    team = order.team or request.operator.team
    request.operator.check_team(team)
    named = {"team": team, "model": order.model, "prompt_cache_key": order.prompt_cache_key}
    wanted = {label: value for label, value in named.items() if value}
    await request.services.audit.record(request.operator, "cache.purged", **wanted)
    return PurgeReport(removed=sum(await request.services.processes.all("purge", wanted=wanted)))


ENDPOINTS = (
    AdminEndpoint("GET", "/cache", "How often the cache answers, and what that saves", get_cache, CacheReport),
    AdminEndpoint(
        "POST", "/cache/purge", "Remove entries", purge_cache, PurgeReport, body=PurgeOrder, roles=MANAGERS
    ),
)  # fmt: skip
