"""Arbitrary JSON for property tests, and calls and contexts to apply policies to."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import Policy, PolicyState, ReplyCheck
from proxy.context import Caller, Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from proxy.wire.event import Event
from proxy.wire.transcript import Transcript

# Examples have no deadline, because a slow machine must not fail a property.
NO_DEADLINE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
ANNA = Caller("anna", "search")


def draw_examples(strategy: st.SearchStrategy[Any], count: int) -> Sequence[Any]:
    """Return the same examples of a strategy each time."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def shuffled(value: Any, dice: random.Random) -> Any:
    """Return the same JSON with the names of its objects in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], dice) for name in dice.sample(list(value), len(value))}
    return [shuffled(inner, dice) for inner in value] if isinstance(value, list) else value


def make_call(**fields: Any) -> Call:
    """Return a call whose body has these fields; `_headers` and `_query` are not part of it."""
    headers, query = fields.pop("_headers", {}), fields.pop("_query", "")
    return Call({"model": "m", **fields}, headers, query)


class NotedResponses:
    """A binder that notes the responses whose ids it is asked to bind, and the transcripts of complete replies."""

    def __init__(self) -> None:
        self.responses: list[Mapping[str, Any]] = []
        self.transcripts: list[Transcript] = []

    def bind_now(self, _call: Call, _context: Context, _response: Mapping[str, Any]) -> bool:
        return False

    async def bind(self, _call: Call, _context: Context, response: Mapping[str, Any]) -> None:
        self.responses.append(response)

    async def bind_output(self, _call: Call, _context: Context, transcript: Transcript) -> None:
        self.transcripts.append(transcript)


def make_context(caller: Caller = ANNA, **options: Any) -> Context:
    """Return the context of a call by this caller."""
    return Context("req_1", caller, **options)


async def apply_policy(
    policy: Policy, call: Call, context: Context | None = None, state: PolicyState | None = None
) -> Call:
    """Return a call as a policy's request check returns it."""
    checked = policy.request_check(state or PolicyState())(call, context or make_context())
    return checked if isinstance(checked, Call) else await checked


async def outcome_of(policy: Policy, call: Call) -> Any:
    """Return the body that passes a policy, or the reason and the param of the refusal, whose message must be short."""
    try:
        return (await apply_policy(policy, call)).body
    except PolicyViolation as violation:
        refusal = violation
    assert len(refusal.message) <= 120
    return refusal.reason, refusal.param


def reply_check_of(
    policy: Policy, call: Call, context: Context | None = None, state: PolicyState | None = None
) -> ReplyCheck | None:
    """Return a policy's check of the reply to a call, or None if it has none."""
    factory = policy.reply_check(state or PolicyState())
    return None if factory is None else factory(call, context or make_context())


async def apply_check(check: ReplyCheck, event: Event) -> Event:
    """Return an event as the check of a reply returns it, which is not applied to events of other types than its own."""
    if check.types is not None and event.type not in check.types:
        return event
    checked = check.check(event)
    return checked if isinstance(checked, Event) else await checked
