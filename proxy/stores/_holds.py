"""The parts of a counter that processes hold, each until its lease ends: a killed process returns nothing."""

from collections.abc import MutableMapping
from typing import NamedTuple

from proxy.stores import LONGEST_S, Holder, HoldRequest


class Hold(NamedTuple):
    """How much a holder holds, when its lease ends, and the number of its last command."""

    amount: int
    ends_at: float
    number: int = 0


Holds = MutableMapping[str, Hold]
"""The holds by the names of their holders."""


def change_hold(holds: Holds, used: int, asked: HoldRequest, limit: int, holder: Holder, now: float) -> tuple[int, int]:
    """Change what a holder holds, and return how much is in use then, and how much of that it holds.

    What is kept and spent belongs to the window of the counter.
    """
    before = holds.get(holder.name)
    if before is not None and asked.number <= before.number:
        return used, before.amount
    used = max(0, used - (0 if before is None else before.amount)) + asked.spent + asked.owed
    holds.pop(holder.name, None)
    is_short = asked.more > limit - used - asked.kept
    if before is None or is_short:
        used = max(0, used - _free_ended(holds, now, is_needed=is_short))
    left = max(0, limit - used - asked.kept)
    more = min(asked.more, left)
    held = asked.kept + more + min(asked.spare, (left - more) // asked.parts)
    # A command that was carried out is known when it is repeated.
    if held or asked.spent or asked.owed or before is not None:
        holds[holder.name] = Hold(held, now + min(holder.lease_s, LONGEST_S), asked.number)
    return used + held, held


def _free_ended(holds: Holds, now: float, *, is_needed: bool) -> int:
    """Remove leases that have ended, those of nothing and, if it is needed, what others held; return how much."""
    ended = [name for name, hold in holds.items() if hold.ends_at <= now and (is_needed or not hold.amount)]
    return sum(holds.pop(name).amount for name in ended)
