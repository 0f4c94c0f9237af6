"""What was used and what it cost, and what is left of budgets."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.callers import known_callers
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Parameters, Searched
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.stores import StoreError
from proxy.usage.formats import as_csv, report_object
from proxy.usage.query import DIMENSIONS, PERIODS, TooManyLines, UsageReport, hours_between, read_usage
from proxy.usage.times import parse_time

LONGEST_HOURS = 24 * 100
MOST_DIMENSIONS = 6
MOST_LINES = 500
MOST_SUMMED = 20_000
"""How many lines are summed: more would keep the calls of the process waiting while they are sorted and written."""
MOST_CALLERS = 200
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


class BudgetList(TypedDict):
    budgets: list[BudgetFacts]


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
    known = {*DIMENSIONS, *PERIODS, *_metadata(parts)}
    if len(set(by)) < len(by) or len(by) > MOST_DIMENSIONS or not known.issuperset(by):
        raise Problem(400, "invalid_by", f"by is a list of at most {MOST_DIMENSIONS} of {', '.join(sorted(known))}.")
    if hours_between(since, until) > LONGEST_HOURS:
        raise Problem(400, "time_too_long", f"At most {LONGEST_HOURS // 24} days can be asked for at once.")
    where = {name: argument[name] for name in ("team", "caller", "model") if argument[name]}
    try:
        return await read_usage(parts.config().state, (since, until), by, where, most_lines=MOST_SUMMED)
    except TooManyLines as error:
        message = f"There are more than {MOST_SUMMED} lines; ask for a shorter time, or for fewer dimensions."
        raise Problem(400, "too_many_lines", message) from error
    except StoreError as error:
        raise Problem(503, "state_unavailable", "The store of [state] cannot be reached at the moment.") from error


def _metadata(parts: GatewayParts) -> tuple[str, ...]:
    return parts.config().usage.metadata


async def read_budgets(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return the budgets of known teams, callers, keys and models. Raises Problem."""
    team, pipeline = argument["team"], parts.pipeline()
    callers = [caller for caller in known_callers(parts) if team in ("", caller.team)][:MOST_CALLERS]
    models = [] if team else [*await pipeline.routes.models()]
    try:
        found = await pipeline.rules.balances(callers, models)
    except StoreError as error:
        raise Problem(503, "state_unavailable", "The store of [state] cannot be reached at the moment.") from error
    return [[rule.name, rule.mode, asdict(balance)] for rule, balance in found if balance.shared_by or not team]


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
    found = await request.services.processes.one("budgets", team=request.operator.team)
    return BudgetList(budgets=[_budget(policy, mode, balance) for policy, mode, balance in found])


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
    AdminEndpoint("GET", "/budgets", "What is left of budgets", list_budgets, BudgetList),
)  # fmt: skip
