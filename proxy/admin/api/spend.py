"""What was used and what it cost, and what is left of budgets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from policies import Balance
from proxy.admin.api.callers import known_callers
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Parameters, Searched
from proxy.admin.api.state import find_keys, reaching_state
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.rules.rule import Rule
from proxy.usage.formats import as_csv, report_object
from proxy.usage.query import DIMENSIONS, PERIODS, TooManyLines, UsageReport, hours_between, read_usage
from proxy.usage.times import parse_time

LONGEST_HOURS = 24 * 100
MOST_DIMENSIONS = 6
MOST_LINES = 500
MOST_SUMMED = 20_000
"""How many lines are summed: more would keep the calls of the process waiting while they are sorted and written."""
MOST_CALLERS = 200
MOST_NOTED, READ_AT_ONCE = 10_000, 1_000
"""How many end users or values of metadata are looked at for each policy, and how many are read together."""
EARLY = 0.02
"""How much of a window must be over for a forecast."""


class SpendFilter(Parameters):
    by: Annotated[str, Field(max_length=256)] = "team,model"
    """A list of team, caller, key, model, target, hour, day, month, and keys of `[usage] metadata`."""
    since: Annotated[str, Field(max_length=64)] = "7d"
    """From when: "today", "yesterday", "month", "last-month", "24h", "7d", "4w", a date or a time in UTC."""
    until: Annotated[str, Field(max_length=64)] = "now"
    team: Searched = ""
    caller: Searched = ""
    model: Searched = ""


class BudgetFilter(Parameters):
    policy: Searched = ""
    """Only the end users or values of metadata that this policy counts."""
    after: Annotated[str, Field(max_length=256)] = ""
    """Only those whose names come after this one: the next page."""
    limit: Annotated[int, Field(ge=1, le=500)] = 100
    """Of how many end users or values of metadata budgets are shown, for each policy."""


class SpendLine(TypedDict):
    labels: dict[str, str]
    numbers: dict[str, float]


class SpendReport(TypedDict):
    since: str
    until: str
    by: list[str]
    dimensions: list[str]
    lines: list[SpendLine]
    total: dict[str, float]
    is_complete: bool


class BudgetFacts(TypedDict):
    policy: str
    mode: str
    shared_by: str
    unit: str
    limit: float
    used: float
    left: float
    window: str
    resets_in_s: float | None
    forecast: float | None


class MoreBudgets(TypedDict):
    policy: str
    after: str


class BudgetList(TypedDict):
    budgets: list[BudgetFacts]
    more: list[MoreBudgets]
    is_complete: bool


async def read_spend(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what was used, as a report in JSON or CSV. Raises Problem."""
    report = await _report(parts, argument)
    if argument["is_csv"]:
        return as_csv(report)
    found = report_object(report)
    lines = [_line(report, line) for line in found["data"][:MOST_LINES]]
    return {
        "since": found["since"], "until": found["until"], "by": [*report.by], "lines": lines, "total": found["total"],
        "dimensions": [*DIMENSIONS, *PERIODS, *_metadata(parts)], "is_complete": len(found["data"]) <= MOST_LINES,
    }  # fmt: skip


def _line(report: UsageReport, data: Mapping[str, Any]) -> SpendLine:
    labels = {name: data[name] for name in report.by}
    return SpendLine(labels=labels, numbers={name: value for name, value in data.items() if name not in labels})


async def _report(parts: GatewayParts, argument: Mapping[str, Any]) -> UsageReport:
    now = datetime.now(UTC)
    try:
        since, until = (parse_time(argument[name], now) for name in ("since", "until"))
    except ValueError as error:
        raise Problem(400, "invalid_time", f"{error}.") from error
    by = [name for name in argument["by"].split(",") if name]
    known = known_dimensions(parts)
    if len(set(by)) < len(by) or len(by) > MOST_DIMENSIONS or not known.issuperset(by):
        raise Problem(400, "invalid_by", f"by is a list of at most {MOST_DIMENSIONS} of {', '.join(sorted(known))}.")
    if hours_between(since, until) > LONGEST_HOURS:
        raise Problem(400, "time_too_long", f"At most {LONGEST_HOURS // 24} days can be asked for at once.")
    where = {name: argument[name] for name in ("team", "caller", "model") if argument[name]}
    try:
        with reaching_state():
            return await read_usage(parts.config().state, (since, until), by, where, most_lines=MOST_SUMMED)
    except TooManyLines as error:
        message = f"There are more than {MOST_SUMMED} lines; ask for a shorter time, or for fewer dimensions."
        raise Problem(400, "too_many_lines", message) from error


def known_dimensions(parts: GatewayParts) -> set[str]:
    """Return by what usage is counted."""
    return {*DIMENSIONS, *PERIODS, *_metadata(parts)}


def _metadata(parts: GatewayParts) -> tuple[str, ...]:
    return parts.config().usage.metadata


async def read_budgets(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return the budgets of known teams, callers, keys and models, and of those that policies have noted."""
    team, pipeline = argument["team"], parts.pipeline()
    callers = [caller for caller in known_callers(parts) if team in ("", caller.team)]
    models = [] if team else [*await pipeline.routes.models()]
    with reaching_state():
        known = [] if argument["policy"] else await pipeline.rules.balances(callers[:MOST_CALLERS], models)
        pages = [await _noted(parts, rule, prefix, argument) for rule, prefix in pipeline.rules.notes()]
    found = [(rule, balance) for rule, balance in known if balance.shared_by or not team]
    found += [pair for page in pages for pair in page.budgets]
    return {
        "budgets": [[pipeline.rules.name_of(rule), rule.mode, asdict(balance)] for rule, balance in found],
        "more": [page.more for page in pages if page.more is not None],
        "is_complete": len(callers) <= MOST_CALLERS and all(page.is_complete for page in pages),
    }


@dataclass(frozen=True, slots=True)
class NotedPage:
    """A page of the budgets of one policy."""

    budgets: list[tuple[Rule, Balance]]
    more: MoreBudgets | None = None
    is_complete: bool = True


async def _noted(parts: GatewayParts, rule: Rule, prefix: str, argument: Mapping[str, Any]) -> NotedPage:
    """Return the budgets of those that a policy has noted, in the order of their names. Raises StoreError.

    An operator of a team sees its end users and its values of metadata.
    """
    team, limit, after = argument["team"], argument["limit"], argument["after"]
    rules = parts.pipeline().rules
    if argument["policy"] not in ("", rules.name_of(rule)):
        return NotedPage([])
    store = parts.config().state
    keys, is_complete = await find_keys(store, prefix, MOST_NOTED)
    names = []
    for start in range(0, len(keys), READ_AT_ONCE):
        values = await store.get_many(keys[start : start + READ_AT_ONCE])
        notes = [orjson.loads(value) for value in values if value is not None]
        names += [name for noted, name in notes if team in ("", noted) and (not after or name > after)]
    names.sort()
    balances = await rules.balances_of(rule, names[:limit])
    more = MoreBudgets(policy=rules.name_of(rule), after=names[limit - 1]) if len(names) > limit else None
    return NotedPage([(rule, balance) for balance in balances], more, is_complete)


async def get_spend(request: AdminRequest) -> SpendReport:
    """Return what was used by the operator's team, or by all."""
    found: SpendReport = await request.services.processes.one("spend", **_asked(request), is_csv=False)
    return found


async def get_spend_csv(request: AdminRequest) -> str:
    """Return the same as CSV, all lines of it, up to 20,000; costs are in US dollars."""
    found: str = await request.services.processes.one("spend", **_asked(request), is_csv=True)
    return f"{found}\n"


def _asked(request: AdminRequest) -> dict[str, Any]:
    query: SpendFilter = request.query
    team = query.team or request.operator.team
    request.operator.check_team(team)
    return {**query.model_dump(), "team": team}


async def list_budgets(request: AdminRequest) -> BudgetList:
    """Return what is left of budgets, and what will be used at the end of their windows if it goes on like that."""
    query: BudgetFilter = request.query
    found = await request.services.processes.one("budgets", **query.model_dump(), team=request.operator.team)
    budgets = [_budget(policy, mode, balance) for policy, mode, balance in found["budgets"]]
    return BudgetList(budgets=budgets, more=found["more"], is_complete=found["is_complete"])


def _budget(policy: str, mode: str, balance: Mapping[str, Any]) -> BudgetFacts:
    lasts_s, left_s, used = balance["lasts_s"], balance["left_s"], balance["used"]
    share = None if lasts_s is None else 1 - left_s / lasts_s
    return BudgetFacts(
        policy=policy, mode=mode, shared_by=balance["shared_by"], unit=balance["unit"], limit=balance["limit"],
        used=used, left=max(0.0, balance["limit"] - used), window=balance["window"], resets_in_s=left_s,
        forecast=used / share if share is not None and share > EARLY else None,
    )  # fmt: skip


ENDPOINTS = (
    AdminEndpoint("GET", "/spend", "What was used, and what it cost", get_spend, SpendReport, SpendFilter),
    AdminEndpoint(
        "GET", "/spend/csv", "What was used, as CSV", get_spend_csv, str, SpendFilter, media="text/csv"
    ),
    AdminEndpoint("GET", "/budgets", "What is left of budgets", list_budgets, BudgetList, BudgetFilter),
)  # fmt: skip
