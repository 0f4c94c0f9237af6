"""JSON of every shape, for property tests, and the calls that carry it."""

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import EventCheck, Policy, Watch
from proxy.wire.call import Call, Caller

# Machines are slow at times; a property does not become false by it.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


def drawn(strategy: st.SearchStrategy[Any], count: int) -> Sequence[Any]:
    """Examples of a strategy, the same ones each time."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def call_with(caller: Caller = Caller("anna", "search"), **fields: Any) -> Call:  # noqa: B008  it is frozen
    """A call whose body has these fields."""
    return Call(caller, {"model": "m", **fields}, {})


async def judged_by(policy: Policy, call: Call) -> Call:
    """What a policy lets pass of a call."""
    judged = policy.judging()(call)
    return judged if isinstance(judged, Call) else await judged


def watch_of(policy: Policy, call: Call) -> Watch | None:
    """How a policy watches the reply to a call."""
    watcher = policy.watching()
    return None if watcher is None else watcher(call)


def check_of(policy: Policy, call: Call) -> EventCheck | None:
    watch = watch_of(policy, call)
    return None if watch is None else watch.check
