"""The policies: what each has decided, and what they would decide about a request that is only tried."""

import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from backends import least_values_of
from policies import PolicyState
from proxy.admin.api.callers import callers_of, known_callers, rules_for
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Parameters, Wanted
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.context import Caller
from proxy.rules.rule import Rule
from proxy.rules.trial import Trial, try_rules
from proxy.state.ownership import Ownership
from proxy.stores.memory import MemoryStore
from proxy.telemetry import metrics
from proxy.telemetry.recent import RecentRequest
from proxy.wire.call import Call, parse_call
from proxy.wire.errors import HeadgateError

Recent = Counter[tuple[str, str, str, str]]
"""Decisions on the last requests by policy, caller, decision and code."""


class TriedRequest(Parameters):
    body: dict[str, Any]
    """The body of a create call."""
    caller: Wanted = ""
    """Whose it is; "" is a caller of no team's own."""
    headers: Annotated[dict[str, str], Field(max_length=64)] = Field(default={})


class DecisionCount(TypedDict):
    decision: str
    code: str
    count: float


class CallerDecisions(TypedDict):
    caller: str
    decision: str
    code: str
    count: int


class PolicyFacts(TypedDict):
    policy: str
    about: str
    mode: str
    rollout: float
    callers: str
    models: str
    version: str
    settings: dict[str, Any]
    decisions: list[DecisionCount]
    recent: list[CallerDecisions]


class PolicyList(TypedDict):
    policies: list[PolicyFacts]


class TrialStep(TypedDict):
    policy: str
    mode: str
    decision: str
    code: str | None
    message: str | None
    param: str | None
    changed: list[str]


class TrialReport(TypedDict):
    passes: bool
    status: int
    error: str | None
    caller: str
    team: str
    steps: list[TrialStep]
    body: dict[str, Any] | None
    route: str | None
    targets: list[str]


async def read_policies(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return the policies that concern a team, or all, and what they did on the last requests but to let them pass."""
    recent: Recent = Counter()
    team = argument["team"]

    def count(request: RecentRequest) -> None:
        if team in ("", request.fields.get("team")):
            for made in request.history.decisions:
                recent[made.policy, str(request.fields.get("caller", "")), made.decision, made.code or ""] += 1

    await parts.recent().search(count, team)
    callers = await callers_of(parts, team)
    tables = parts.config().tables.get("policy", [])
    found, shown = [], rules_for(parts, team, callers)
    for rule, table in zip(parts.config().rules, tables, strict=False):
        if rule not in shown:
            continue
        module = sys.modules[type(rule.policy).__module__]
        own = {name: value for name, value in table.items() if name in type(rule.policy).model_fields}
        found.append({
            "policy": rule.name, "about": (inspect.getdoc(module) or "").partition("\n")[0], "mode": rule.mode,
            "rollout": rule.rollout, "callers": _selector(rule, table.get("callers", ["*"]), callers if team else None),
            "models": ", ".join(table.get("models", ["*"])), "version": rule.version(), "settings": own,
        })  # fmt: skip
    return {"policies": found, "recent": [[*key, count] for key, count in recent.items()]}


def _selector(rule: Rule, globs: Sequence[str], callers: Sequence[Caller] | None) -> str:
    """Return which callers a policy selects: an operator of a team is shown those of the team, not whom else."""
    if callers is None or rule.callers is None:
        return ", ".join(globs)
    return ", ".join(caller.name for caller in callers if rule.callers.match(caller.name))


async def try_request(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what the policies decide about a request. Nothing is sent, and nothing is counted. Raises Problem."""
    caller = _caller(parts, argument["caller"], argument["team"])
    headers = {name.lower(): value for name, value in argument["headers"].items()}
    try:
        sent = orjson.dumps(argument["body"])
    except orjson.JSONEncodeError as error:
        raise Problem(400, "invalid_body", f"body: {error}") from error
    report = TrialReport(
        passes=False, status=200, error=None, caller=caller.name, team=caller.team, steps=[], body=None, route=None,
        targets=[],
    )  # fmt: skip
    try:
        call = parts.pipeline().routes.with_model(parse_call(sent, headers=headers, needs_model=False))
        await _try(parts, call, caller, headers, report, argument["team"])
    except HeadgateError as error:  # no policy's
        report["status"], report["error"] = error.status, error.message
    return report


async def _try(
    parts: GatewayParts, call: Call, caller: Caller, headers: Mapping[str, str], report: TrialReport, team: str
) -> None:
    """Complete a report with what the policies decide, and with where the call would go. Raises HeadgateError."""
    config, routes, store = parts.config(), parts.pipeline().routes, MemoryStore()
    least_values, quote_of = least_values_of(config.backends.values()), partial(parts.process.targets.quote_of, routes)
    state = PolicyState(store, Ownership(store), least_values=least_values, quote_of=quote_of)
    try:
        trials, passed = await try_rules(config.rules, call, caller, state, headers)
    finally:
        await state.close()
    shown = rules_for(parts, team, await callers_of(parts, team))
    report["steps"] = [_step(trial) for trial in trials if trial.rule in shown or trial.rule not in config.rules]
    for trial in trials:
        if trial.decision == "refused" and trial.error is not None:
            raise trial.error
    report["body"] = dict(passed.body)
    route = routes.match(passed)
    report["passes"], report["route"], report["targets"] = True, route.name, [each.name for each in route.targets]


def _caller(parts: GatewayParts, name: str, team: str) -> Caller:
    """Return the caller of this name, within a team if one is given. Raises Problem for an unknown one."""
    if not name:
        return Caller("anybody", team or "anybody")
    for caller in known_callers(parts):
        if caller.name == name and team in ("", caller.team):
            return caller
    raise Problem(404, "unknown_caller", "There is no caller with this name.")


def _step(trial: Trial) -> TrialStep:
    error = trial.error
    code = None if error is None else error.code
    if code is None and (reason := getattr(error, "reason", None)):
        code = f"{trial.rule.name}.{reason}"
    return TrialStep(
        policy=trial.rule.name, mode=trial.rule.mode, decision=trial.decision, code=code,
        message=None if error is None else error.message, param=None if error is None else error.param,
        changed=[*trial.changed],
    )  # fmt: skip


async def list_policies(request: AdminRequest) -> PolicyList:
    """Return the policies with what they decided: since the start for all teams, and on the last requests."""
    team = request.operator.team
    processes = request.services.processes
    lists = await processes.all("policies", team=team)
    recent: Recent = Counter()
    for one in lists:
        for policy, caller, decision, code, count in one["recent"]:
            recent[policy, caller, decision, code] += count
    counts = {} if team else (await processes.snapshot()).get(metrics.POLICY_DECISIONS, {})
    return PolicyList(policies=[_facts(policy, counts, recent) for policy in lists[0]["policies"]])


def _facts(
    policy: dict[str, Any], counts: Mapping[Any, Any], recent: Counter[tuple[str, str, str, str]]
) -> PolicyFacts:
    name = policy["policy"]
    decisions = [
        DecisionCount(decision=decision, code=code, count=count)
        for (each, decision, code), count in sorted(counts.items())
        if each == name
    ]
    by_caller = [
        CallerDecisions(caller=caller, decision=decision, code=code, count=count)
        for (each, caller, decision, code), count in recent.most_common()
        if each == name
    ]
    facts: PolicyFacts = {**policy, "decisions": decisions, "recent": by_caller}  # type: ignore[typeddict-item]
    return facts


async def try_policies(request: AdminRequest) -> TrialReport:
    """Return what each policy would decide about a request, and the body that would be sent. Nothing is sent."""
    tried: TriedRequest = request.body
    wanted = {"body": tried.body, "caller": tried.caller, "headers": tried.headers, "team": request.operator.team}
    report: TrialReport = await request.services.processes.one("try", **wanted)
    return report


ENDPOINTS = (
    AdminEndpoint("GET", "/policies", "The policies, and what they have decided", list_policies, PolicyList),
    AdminEndpoint(
        "POST", "/policies/try", "What the policies would decide about a request", try_policies, TrialReport,
        body=TriedRequest,
    ),
)  # fmt: skip
