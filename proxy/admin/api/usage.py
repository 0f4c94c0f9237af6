"""What was used, in all its lines: for programs, and for `headgate usage`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Parameters
from proxy.admin.api.spend import MOST_SUMMED, known_dimensions
from proxy.admin.api.state import reaching_state
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.usage.formats import report_object
from proxy.usage.query import TooManyLines, hours_between, read_usage
from proxy.usage.times import parse_time, parse_zone

LONGEST_HOURS = 24 * 400


class UsageFilter(Parameters):
    by: Annotated[str, Field(max_length=512)] = "team"
    """A list of team, caller, key, model, target, hour, day, month, and keys of `[usage] metadata`."""
    since: Annotated[str, Field(max_length=64)] = "today"
    until: Annotated[str, Field(max_length=64)] = "now"
    tz: Annotated[str, Field(max_length=64)] = "UTC"
    """The zone of days and times."""
    where: Annotated[str, Field(max_length=2048)] = ""
    """Only calls with these labels, written as in a query: team=search&model=gpt-5."""


class UsageAnswer(TypedDict):
    since: str
    until: str
    by: list[str]
    data: list[dict[str, str | float]]
    total: dict[str, float]


async def read_table(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what was used. Raises Problem."""
    by = [*dict.fromkeys(name for name in argument["by"].split(",") if name)]
    where: dict[str, str] = argument["where"]
    known = known_dimensions(parts)
    if unknown := [name for name in (*by, *where) if name not in known]:
        raise Problem(400, "invalid_by", f"'{unknown[0]}' is not counted; known are {', '.join(sorted(known))}.")
    try:
        zone = parse_zone(argument["tz"])
        now = datetime.now(zone)
        since, until = (parse_time(argument[name], now) for name in ("since", "until"))
    except ValueError as error:
        raise Problem(400, "invalid_time", f"{error}.") from error
    if since >= until or hours_between(since, until) > LONGEST_HOURS:
        raise Problem(400, "time_too_long", f"since is before until, and by at most {LONGEST_HOURS // 24} days.")
    try:
        with reaching_state():
            report = await read_usage(parts.config().state, (since, until), by, where, zone, most_lines=MOST_SUMMED)
    except TooManyLines as error:
        message = f"There are more than {MOST_SUMMED} lines; ask for a shorter time, or for fewer dimensions."
        raise Problem(400, "too_many_lines", message) from error
    return {name: value for name, value in report_object(report).items() if name != "object"}


async def get_usage(request: AdminRequest) -> UsageAnswer:
    """Return what the operator's team has used, or all."""
    query: UsageFilter = request.query
    where = dict(parse_qsl(query.where, keep_blank_values=True, errors="replace"))
    if request.operator.team:
        request.operator.check_team(where.setdefault("team", request.operator.team))
    found: UsageAnswer = await request.services.processes.one("usage", **query.model_dump() | {"where": where})
    return found


ENDPOINTS = (
    AdminEndpoint("GET", "/usage", "What was used, in all its lines", get_usage, UsageAnswer, UsageFilter),
)  # fmt: skip
