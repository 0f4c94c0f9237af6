"""The cache: how often it answers, what that saves, and that entries are removed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import Partition
from proxy.stores import StoreError
from proxy.telemetry import metrics
from proxy.telemetry.instruments import Metric, Snapshot

UNREADABLE = "(unreadable)"


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


class ForgetOrder(Parameters):
    team: Name
    """Whose entries nothing can read any more."""


class ForgetReport(TypedDict):
    team: str


class EntryCount(TypedDict):
    team: str
    model: str
    entries: int
    bytes: int


class EntryList(TypedDict):
    entries: list[EntryCount]


class PurgeReport(TypedDict):
    removed: int


async def purge_entries(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Remove entries from the cache of this process; return how many. Raises Problem."""
    wanted = argument["wanted"]
    with _reaching_cache():
        return await purge(_vault(parts), partitions_of(known_callers(parts), wanted.get("team")), wanted)


async def forget_team(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Make the entries of a team unreadable in the cache of this process. Raises Problem."""
    with _reaching_cache():
        await _vault(parts).forget(Partition("team", argument["team"]))


async def read_entries(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return how many entries there are of each team and model, and whether this process has them alone."""
    team = argument["team"]
    counts, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with _reaching_cache():
        async for entry in _vault(parts).entries(partitions_of(known_callers(parts), team or None)):
            labels = entry.labels or {"team": UNREADABLE}
            if team in ("", labels.get("team")):
                key = labels.get("team", ""), labels.get("model", "")
                counts[key] += 1
                sizes[key] += entry.size_bytes
    is_own = parts.config().tables.get("cache", {}).get("use", "memory") == "memory"
    return {"is_own": is_own, "entries": [[*key, count, sizes[key]] for key, count in counts.items()]}


def _vault(parts: GatewayParts) -> Vault:
    vault = parts.pipeline().cache.vault
    if vault is None:
        raise Problem(409, "no_cache", "The config has no [cache].")
    return vault


@contextmanager
def _reaching_cache() -> Iterator[None]:
    """Raises Problem inside the block where the store fails."""
    try:
        yield
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


async def forget_entries(request: AdminRequest) -> ForgetReport:
    """Make all entries of a team unreadable at once, on every machine that shares the cache."""
    team = request.body.team
    request.operator.check_team(team)
    await request.services.audit.record(request.operator, "cache.forgotten", team=team)
    await request.services.processes.all("forget", team=team)
    return ForgetReport(team=team)


async def list_entries(request: AdminRequest) -> EntryList:
    """Return how many entries each team and model has."""
    sums: dict[tuple[str, str], list[int]] = {}
    processes, own_team = request.services.processes, request.operator.team
    first = await processes.one("cache_entries", team=own_team)
    for one in await processes.all("cache_entries", team=own_team) if first["is_own"] else [first]:
        for team, model, count, size in one["entries"]:
            before = sums.get((team, model), [0, 0])
            sums[team, model] = [before[0] + count, before[1] + size]
    found = [
        EntryCount(team=team, model=model, entries=count, bytes=size)
        for (team, model), (count, size) in sorted(sums.items())
    ]
    return EntryList(entries=found)


ENDPOINTS = (
    AdminEndpoint("GET", "/cache", "How often the cache answers, and what that saves", get_cache, CacheReport),
    AdminEndpoint(
        "POST", "/cache/purge", "Remove entries", purge_cache, PurgeReport, body=PurgeOrder, roles=MANAGERS
    ),
    AdminEndpoint(
        "POST", "/cache/forget", "Make the entries of a team unreadable", forget_entries, ForgetReport,
        body=ForgetOrder, roles=MANAGERS,
    ),
    AdminEndpoint("GET", "/cache/entries", "How many entries there are", list_entries, EntryList),
)  # fmt: skip
