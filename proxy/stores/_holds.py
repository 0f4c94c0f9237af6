"""What processes hold of a counter, each until its lease ends: a killed one gives nothing back itself."""

from collections.abc import MutableMapping

Holds = MutableMapping[str, tuple[int, float]]
"""How much each holder holds, and when its lease ends."""


def free_ended(holds: Holds, now: float) -> int:
    """Remove what is held under a lease that has ended, and return how much that was."""
    ended = [holder for holder, (_, ends_at) in holds.items() if ends_at <= now]
    return sum(holds.pop(holder)[0] for holder in ended)


def hold(holds: Holds, holder: str, amount: int, ends_at: float) -> None:
    """Let a holder have more, and all that it has until then."""
    holds[holder] = holds.get(holder, (0, 0))[0] + amount, ends_at


def let_go(holds: Holds, holder: str, amount: int) -> int:
    """Take an amount from a holder and return it; 0 if its lease has ended."""
    held, ends_at = holds.get(holder, (0, 0.0))
    if held < amount:
        return 0
    if held == amount:
        holds.pop(holder, None)
    else:
        holds[holder] = held - amount, ends_at
    return amount
