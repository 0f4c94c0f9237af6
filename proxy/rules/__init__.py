"""Applies policies: to requests (`admit`), and to replies (`guard`)."""

from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace

from policies import Balance, PolicyState
from proxy.context import Caller, Context
from proxy.rules.admit import RequestAdmission
from proxy.rules.decisions import Decisions
from proxy.rules.guard import Guard
from proxy.rules.key_models import rule_of_key
from proxy.rules.rule import Rule
from proxy.telemetry.audit import Audit
from proxy.telemetry.recorder import Recorder
from proxy.wire.call import Call, resource_call
from proxy.wire.event import FOLLOWED, Reply
from proxy.wire.resource import ResourceRequest


class Rules:
    """All rules of a config, ready to be applied."""

    def __init__(
        self,
        rules: Sequence[Rule],
        state: PolicyState,
        *,
        audit: Audit | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """All policies share `state`; each gets it with its own name."""
        active = [rule for rule in rules if rule.mode != "off"]
        self.decisions = decisions = Decisions(active, audit)
        self.followed = FOLLOWED.union(*(rule.policy.follows for rule in active))
        self._rules = active
        self._states = states = _states(rules, state)
        self._admission = RequestAdmission(active, states, decisions, audit, recorder)
        self._guard = Guard(decisions)
        self._state = state

    async def admit(self, call: Call, context: Context) -> Call:
        """Return the call as the policies allow it. Raises PolicyViolation, Unavailable."""
        return await self._admission.admit(call, context)

    def begin_admission(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        """Return what `admit` returns, or an awaitable for it if a check has to wait."""
        return self._admission.begin(call, context)

    def guard(self, call: Call, reply: Reply, context: Context) -> Awaitable[Reply]:
        """Return the reply with its checks applied. Raises BackendError, Unavailable."""
        return self._guard.guard(call, reply, context)

    def pass_unchecked(self, call: Call, reply: Reply, context: Context) -> bool:
        """Pass on at once a body that needs no checks; return whether the reply is one."""
        return self._guard.pass_unchecked(call, reply, context)

    async def close(self) -> None:
        """Return what policies hold in the store, after the last call."""
        await self._state.close()

    async def admit_resource(self, request: ResourceRequest, context: Context) -> ResourceRequest:
        """Return a request for a resource as the policies of its fields allow it.

        Raises PolicyViolation, Unavailable.
        """
        call = resource_call(request, context.memory.needed_bytes)
        admitted = await self.admit(call, context)
        return request if admitted is call else replace(request, body=admitted.body)

    def model_names(self, caller: Caller) -> Iterable[str]:
        """Return names of models that this caller may send although no route serves them, such as aliases."""
        rules = [rule for rule in self._rules if rule.is_enforced_for(caller) and rule.applies_to(caller, "")]
        return dict.fromkeys(name for rule in rules for name in rule.policy.model_names())

    async def balances(self, callers: Iterable[Caller], models: Iterable[str]) -> Sequence[tuple[Rule, Balance]]:
        """Return the balances of each limit over time for these callers and models. Raises StoreError."""
        known, names = [*callers], [*models]
        found: list[tuple[Rule, Balance]] = []
        for rule in self._rules:
            selected = [caller for caller in known if rule.applies_to(caller, "")]
            balances = await rule.policy.balances(self._states[id(rule)], selected, names)
            found += [(rule, balance) for balance in balances]
        return found

    def name_of(self, rule: Rule) -> str:
        """Return the name of a policy's counters, as in `x-headgate-budget`: "budget:team.usd.month"."""
        return self._states[id(rule)].name

    def notes(self) -> Sequence[tuple[Rule, str]]:
        """Return the policies that note who shares a limit over time, and the prefixes of their notes' keys."""
        prefixes = [(rule, rule.policy.notes_prefix(self._states[id(rule)])) for rule in self._rules]
        return [(rule, prefix) for rule, prefix in prefixes if prefix]

    async def balances_of(self, rule: Rule, shared: Iterable[str]) -> Sequence[Balance]:
        """Return the balances of one policy's limit for those with these names. Raises StoreError."""
        return await rule.policy.balances_of(self._states[id(rule)], shared)

    def resolve_model(self, name: str, caller: Caller) -> str | None:
        """Return the model with which a call of this caller for `name` is forwarded; None if it would be refused."""
        model: str | None = name
        for rule in self._rules:
            if model is not None and rule.is_enforced_for(caller) and rule.applies_to(caller, model):
                model = rule.policy.resolve_model(model)
        if model is not None and caller.models:
            model = rule_of_key(caller.models)[0].policy.resolve_model(model)
        return model


def _states(rules: Sequence[Rule], shared: PolicyState) -> dict[int, PolicyState]:
    """Return the state of each rule by its id. Rules with the same name are numbered in order, off ones included."""
    count: Counter[str] = Counter()
    states = {}
    for rule in rules:
        name = rule.counter_name()
        count[name] += 1
        states[id(rule)] = replace(shared, name=name if count[name] == 1 else f"{name}-{count[name]}")
    return states
