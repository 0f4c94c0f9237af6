"""The last requests: which there were, and what happened to each."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.callers import callers_of, rules_for
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Moment, Parameters, Searched
from proxy.admin.api.formats import as_ms, as_number, as_text, as_time
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.context import Caller
from proxy.rules.rule import Rule
from proxy.telemetry.http_methods import SOCKET
from proxy.telemetry.recent import RecentRequest
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_metrics import outcome_of

MOST = 500
TEXTS = ("id", "caller", "team", "own_team", "model", "code", "policy")
"""What a filter can want that is a value of the request as it is kept."""


class RequestFilter(Parameters):
    id: Searched = ""
    """The request's id, or its response's, or its trace's."""
    caller: Searched = ""
    team: Searched = ""
    model: Searched = ""
    code: Searched = ""
    """The code of the error with which it ended, or of any policy's decision on it."""
    policy: Searched = ""
    """A policy that decided other than to let it pass."""
    outcome: Searched = ""
    """success, stopped, refused, rejected, failed, client_closed or cancelled."""
    since: Moment | None = None
    """The earliest time at which it ended."""
    until: Moment | None = None
    """The latest time at which it ended."""
    limit: Annotated[int, Field(ge=1, le=MOST)] = 100


class RequestSummary(TypedDict):
    id: str
    time: str | None
    event: str
    method: str | None
    path: str | None
    caller: str | None
    team: str | None
    model: str | None
    route: str | None
    target: str | None
    transport: str
    status: float | None
    outcome: str
    code: str | None
    policy: str | None
    cache: str | None
    duration_ms: float | None
    first_event_ms: float | None
    input_tokens: float | None
    output_tokens: float | None
    cost_usd: float | None
    trace_id: str | None


class StepTime(TypedDict):
    name: str
    began_ms: float
    lasted_ms: float


class AttemptTime(TypedDict):
    target: str
    began_ms: float
    lasted_ms: float
    status: int | None
    error: str | None


class PolicyStep(TypedDict):
    policy: str
    mode: str
    decision: str
    code: str | None
    param: str | None


class RequestList(TypedDict):
    requests: list[RequestSummary]
    is_complete: bool


class RequestDetail(TypedDict):
    request: RequestSummary
    steps: list[StepTime]
    attempts: list[AttemptTime]
    policies: list[PolicyStep]
    fields: dict[str, str | float | bool]
    content: dict[str, str]
    trace_url: str | None


async def find(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return the newest requests that a filter selects, as many as its limit."""
    wanted, found = MappingProxyType(argument), list[RequestSummary]()
    limit: int = wanted["limit"]

    def add(request: RecentRequest) -> bool:
        if _is_selected(request, wanted):
            found.append(_summary(request))
        return len(found) >= limit

    await parts.recent().search(add, *(wanted[name] for name in TEXTS))
    return found


async def describe(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what happened to one request; None if this process does not know it."""
    found, team = list[RecentRequest](), argument["team"]

    def add(request: RecentRequest) -> bool:
        if request.request_id == argument["id"] and _is_of_team(request, team):
            found.append(request)
        return bool(found)

    await parts.recent().search(add, argument["id"], team)
    if not found:
        return None
    request, rules = found[0], rules_for(parts, team, await callers_of(parts, team))
    return {
        "request": _summary(request),
        "steps": [*_steps(request)],
        "attempts": [_attempt(made) for made in request.attempts],
        "policies": [*_policies(rules, request)],
        "fields": dict(request.fields),
        "content": dict(request.history.content),
    }


def _is_of_team(request: RecentRequest, team: str) -> bool:
    return not team or request.fields.get("team") == team


def _is_selected(request: RecentRequest, wanted: Mapping[str, Any]) -> bool:
    fields, decisions = request.fields, request.history.decisions
    ids = (request.request_id, fields.get("response_id"), fields.get("trace_id"))
    codes = {fields.get("code"), fields.get("upstream_code"), *(made.code for made in decisions)}
    return (
        _is_of_team(request, wanted["own_team"])
        and all(not wanted[name] or fields.get(name) == wanted[name] for name in ("team", "caller", "model"))
        and (not wanted["id"] or wanted["id"] in ids)
        and (not wanted["code"] or wanted["code"] in codes)
        and (not wanted["policy"] or wanted["policy"] in {made.policy for made in decisions})
        and (not wanted["outcome"] or _outcome(fields)[0] == wanted["outcome"])
        and (wanted["since"] is None or request.ended_at >= wanted["since"])
        and (wanted["until"] is None or request.ended_at <= wanted["until"])
    )


def _outcome(fields: Mapping[str, Any]) -> tuple[str, str]:
    names = ("status", "code", "outcome", "finish_reason")
    known: dict[str, Any] = {name: fields.get(name) for name in names}
    return outcome_of(RequestRecord(**known))


def _summary(request: RecentRequest) -> RequestSummary:
    fields = request.fields
    outcome, code = _outcome(fields)
    transport = "websocket" if fields.get("method") == SOCKET else "stream" if fields.get("stream") else "json"
    texts = ("method", "path", "caller", "team", "model", "route", "policy", "cache", "trace_id")
    numbers = ("status", "input_tokens", "output_tokens", "cost_usd")
    found: dict[str, Any] = {name: as_text(fields.get(name)) for name in texts}
    found |= {name: as_number(fields.get(name)) for name in numbers}
    whole: Any = {
        **found, "id": request.request_id, "time": as_time(request.ended_at), "event": request.event,
        "outcome": outcome, "code": code or as_text(fields.get("upstream_code")),
        "target": as_text(fields.get("backend")), "duration_ms": as_ms(request.duration_s),
        "transport": "background" if "method" not in fields else transport,
        "first_event_ms": as_ms(fields.get("first_event_s")),
    }  # fmt: skip
    summary: RequestSummary = whole
    return summary


def _steps(request: RecentRequest) -> Iterator[StepTime]:
    """Yield the steps of the path, one after the other; "backend" is the wait of each attempt for its first event."""
    began_s, attempts = 0.0, iter(request.attempts)
    for name, lasted_s in request.steps:
        if name == "backend" and (made := next(attempts, None)) is not None:
            began_s = max(began_s, made.began_s)
        yield StepTime(name=name, began_ms=round(began_s * 1000, 3), lasted_ms=round(lasted_s * 1000, 3))
        began_s += lasted_s
    if (rest_s := request.duration_s - began_s) > 0:
        yield StepTime(name="answer", began_ms=round(began_s * 1000, 3), lasted_ms=round(rest_s * 1000, 3))


def _attempt(made: Any) -> AttemptTime:
    began_ms, lasted_ms = round(made.began_s * 1000, 3), round(made.lasted_s * 1000, 3)
    return AttemptTime(target=made.target, began_ms=began_ms, lasted_ms=lasted_ms, status=made.status, error=made.error)


def _policies(rules: Sequence[Rule], request: RecentRequest) -> Iterator[PolicyStep]:
    """Yield what each policy decided; of those without a note whether they select the call."""
    fields, notes = request.fields, [*request.history.decisions]
    caller = Caller(str(fields.get("caller", "")), str(fields.get("team", "")))
    is_over = "caller" not in fields
    for rule in rules:
        note = next((note for note in notes if note.policy == rule.name), None)
        if note is not None:
            notes.remove(note)
            yield PolicyStep(policy=rule.name, mode=rule.mode, decision=note.decision, code=note.code, param=note.param)
            is_over = is_over or note.decision in ("refused", "unavailable")
            continue
        selects = rule.mode != "off" and rule.applies_to(caller, str(fields.get("model", "")))
        decision = "not reached" if is_over else "passed" if selects else "not selected"
        yield PolicyStep(policy=rule.name, mode=rule.mode, decision=decision, code=None, param=None)
    for note in notes:  # of a key's models, of a reply, or of a policy that is not in the config any more
        yield PolicyStep(policy=note.policy, mode="", decision=note.decision, code=note.code, param=note.param)


async def list_requests(request: AdminRequest) -> RequestList:
    """Return the newest requests of all processes."""
    query: RequestFilter = request.query
    wanted = query.model_dump(exclude={"since", "until"}) | {"own_team": request.operator.team}
    for name in ("since", "until"):
        value = getattr(query, name)
        wanted[name] = None if value is None else value.timestamp()
    lists = await request.services.processes.all("requests", **wanted)
    found = sorted((each for one in lists for each in one), key=lambda each: str(each["time"]), reverse=True)
    is_complete = all(len(one) < query.limit for one in lists) and len(found) <= query.limit
    return RequestList(requests=found[: query.limit], is_complete=is_complete)


async def get_request(request: AdminRequest) -> RequestDetail:
    """Return one request. Raises Problem if no process knows it."""
    wanted = {"id": request.values["id"], "team": request.operator.team}
    found = next((each for each in await request.services.processes.all("request", **wanted) if each), None)
    if found is None:
        raise Problem(404, "unknown_request", "No request with this id is among the last ones.")
    template, trace_id = request.services.settings.trace_url, found["request"]["trace_id"]
    found["trace_url"] = template.replace("{trace_id}", trace_id) if template and trace_id else None
    detail: RequestDetail = found
    return detail


ENDPOINTS = (
    AdminEndpoint("GET", "/requests", "The last requests, the newest first", list_requests, RequestList, RequestFilter),
    AdminEndpoint("GET", "/requests/{id}", "What happened to one request", get_request, RequestDetail),
)
