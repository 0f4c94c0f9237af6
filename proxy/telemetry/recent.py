"""The requests that ended last, as far as the admin API shows them: a bounded list in memory, for each process.

Prompts and outputs are not among it, unless they are captured for the team. Without `[admin]` nothing is kept.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import orjson

MAX_NOTES = 64
"""How many decisions, and how many attempts, are kept of one request."""
UNPACKING, MOST_WORK = 64, 2048
"""How much longer it takes to unpack a request than to pass it over, and how much is done in one step: about 1 ms."""
NOT_OF_THE_RECORD = frozenset({"timestamp", "level", "event", "request_id", "duration_ms"})
"""The fields of a log line that every request has."""


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


NONE: Sequence[MadeDecision] = ()
NO_CONTENT: Mapping[str, str] = MappingProxyType({})


class CallHistory:
    """What happened to one request beside what its record says."""

    __slots__ = ("_attempts", "content", "decisions")

    def __init__(self) -> None:
        self._attempts: list[tuple[str, float, float, int | None, str | None]] = []
        self.decisions: Sequence[MadeDecision] = NONE
        self.content: Mapping[str, str] = NO_CONTENT
        """What was captured of its content, if the team's is."""

    def add_attempt(self, target: str, began_s: float, lasted_s: float, status: int | None, error: str | None) -> None:
        """Note an attempt. Each request has one, so its class is made when it is read."""
        if len(self._attempts) < MAX_NOTES:
            self._attempts.append((target, began_s, lasted_s, status, error))

    @property
    def attempts(self) -> Sequence[MadeAttempt]:
        return [MadeAttempt(*each) for each in self._attempts]

    def add_decision(self, decision: MadeDecision) -> None:
        if len(self.decisions) < MAX_NOTES:
            self.decisions = [*self.decisions, decision]


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
    history: CallHistory


Kept = tuple[bytes, bytes, float, float, Sequence[tuple[str, float]], CallHistory]
"""A request as it is kept: the text that is searched, its log line, and what that does not have."""


class RecentRequests:
    """The requests that ended last, oldest first.

    The fields are kept as the log line, one object: each of a hundred would have to be freed when it is in no cache of
    the processor any more.
    """

    def __init__(self, maxlen: int = 0) -> None:
        self.maxlen = maxlen
        self._kept: deque[Kept] = deque(maxlen=maxlen)
        self._turn = asyncio.Lock()

    def add(
        self, line: bytes, ended_at: float, duration_s: float, steps: Sequence[tuple[str, float]], history: CallHistory
    ) -> None:
        """Add a request; `line` is its log line. A search looks at that and at what policies have decided."""
        text = b"%b\n%b" % (line, orjson.dumps(history.decisions, default=tuple)) if history.decisions else line
        self._kept.append((text, line, ended_at, duration_s, steps, history))

    async def search(self, look: Callable[[RecentRequest], object], *texts: str) -> None:
        """Show requests to a function, the newest first, until it returns something true.

        Those that do not have all these texts as values are passed over. Unpacking 100,000 takes 2 s, so other work is
        done in between; one search follows another.
        """
        needles = [_as_kept(text) for text in texts if text]
        async with self._turn:
            work = 0
            for kept in reversed([*self._kept]):
                is_candidate = all(needle in kept[0] for needle in needles)
                if is_candidate and look(_unpack(kept)):
                    return
                work += UNPACKING if is_candidate else 1
                if work >= MOST_WORK:
                    work = 0
                    await asyncio.sleep(0)


def _as_kept(text: str) -> bytes:
    """Return a value as the text of a request has it."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:  # a lone surrogate, which no request has
        return b"\n\n"


def _unpack(kept: Kept) -> RecentRequest:
    _, line, ended_at, duration_s, steps, history = kept
    fields = orjson.loads(line)
    request_id, event = fields["request_id"], fields["event"]
    known = {name: value for name, value in fields.items() if name not in NOT_OF_THE_RECORD}
    return RecentRequest(ended_at, request_id, event, known, duration_s, steps, history)
