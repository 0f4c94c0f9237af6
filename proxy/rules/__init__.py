"""Applies policies: to requests (`admit`), and to replies (`guard`)."""

from collections import Counter
from collections.abc import Sequence

from policies import Chains, PolicyState
from proxy.context import Context
from proxy.rules.admit import RequestAdmission
from proxy.rules.decisions import Decisions
from proxy.rules.guard import Guard
from proxy.rules.rule import Rule
from proxy.stores import Store
from proxy.telemetry.audit import Audit
from proxy.telemetry.recorder import Recorder
from proxy.wire.call import Call
from proxy.wire.event import FOLLOWED, Reply


class Rules:
    """All rules of a config, ready to be applied."""

    def __init__(
        self,
        rules: Sequence[Rule],
        store: Store,
        chains: Chains,
        *,
        audit: Audit | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        active = [rule for rule in rules if rule.mode != "off"]
        decisions = Decisions(active, audit)
        self.followed = FOLLOWED.union(*(rule.policy.follows for rule in active))
        self._admission = RequestAdmission(active, _states(rules, store, chains), decisions, recorder)
        self._guard = Guard(decisions)

    async def admit(self, call: Call, context: Context) -> Call:
        """Return the call as the policies allow it. Raises PolicyViolation, Unavailable."""
        return await self._admission.admit(call, context)

    async def guard(self, call: Call, reply: Reply, context: Context) -> Reply:
        """Return the reply with its checks applied. Raises BackendError, Unavailable."""
        return await self._guard.guard(call, reply, context)


def _states(rules: Sequence[Rule], store: Store, chains: Chains) -> dict[int, PolicyState]:
    """The state of each rule by its id. Rules of one policy are numbered in the order of the config, off ones too."""
    count: Counter[str] = Counter()
    states = {}
    for rule in rules:
        states[id(rule)] = PolicyState(store, chains, f"{rule.name}:{count[rule.name]}")
        count[rule.name] += 1
    return states
