"""The requests that ended last, as far as the admin API shows them: a bounded list in memory, for each process.

Prompts and outputs are not among it, unless they are captured for the team. Without `[admin]` nothing is kept.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_NOTES = 64
"""How many decisions, and how many attempts, are kept of one request."""


class MadeAttempt(NamedTuple):
    """One attempt at a target. Times are in seconds; `began_s` is since the request arrived."""

    target: str
    began_s: float
    lasted_s: float
    status: int | None
    error: str | None


class MadeDecision(NamedTuple):
    """What one policy decided, other than to let the call pass."""

    policy: str
    decision: str
    code: str | None
    param: str | None


class CallHistory:
    """What happened to one request beside what its record says."""

    __slots__ = ("attempts", "content", "decisions")

    def __init__(self) -> None:
        self.attempts: list[MadeAttempt] = []
        self.decisions: list[MadeDecision] = []
        self.content: Mapping[str, str] = {}
        """What was captured of its content, if the team's is."""

    def add_attempt(self, attempt: MadeAttempt) -> None:
        if len(self.attempts) < MAX_NOTES:
            self.attempts.append(attempt)

    def add_decision(self, decision: MadeDecision) -> None:
        if len(self.decisions) < MAX_NOTES:
            self.decisions.append(decision)


class RecentRequest(NamedTuple):
    """One request that has ended. `fields` are those of its log line: scalars, bounded in length.

    `ended_at` is a time in seconds since 1970.
    """

    ended_at: float
    request_id: str
    event: str
    fields: Mapping[str, str | int | float | bool]
    duration_s: float
    steps: Sequence[tuple[str, float]]
    history: CallHistory | None


RecentRequests = deque[RecentRequest]
