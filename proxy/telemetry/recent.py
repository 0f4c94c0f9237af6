"""The last finished requests, as the admin API shows them: a bounded list in the memory of each process.

Prompts and outputs are not among it, unless they are captured for the team. Without `[admin]` nothing is kept.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from proxy.telemetry.server_timing import read_timing

MAX_NOTES = 64
"""The most decisions, and the most attempts, that are kept of one request."""
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


PackedAttempt = tuple[str, float, float, int | None, str | None]
"""The fields of an attempt: each request has one, so its class is made when it is read."""


class CallHistory:
    """What policies decided about a request, and what was captured of its content. Most requests have none."""

    __slots__ = ("content", "decisions")

    def __init__(self) -> None:
        self.decisions: Sequence[MadeDecision] = NONE
        self.content: Mapping[str, str] = NO_CONTENT
        """What was captured of its content, if the team's is."""

    def add_decision(self, decision: MadeDecision) -> None:
        if len(self.decisions) < MAX_NOTES:
            self.decisions = [*self.decisions, decision]

    @staticmethod
    def unpacked(decisions: list[list[Any]], content: Mapping[str, str]) -> "CallHistory":
        """Return the history of which JSON has had these parts."""
        history = CallHistory()
        history.decisions, history.content = [MadeDecision(*each) for each in decisions], content
        return history


class RecentRequest(NamedTuple):
    """One finished request. `fields` are those of its log line: scalars, bounded in length.

    `ended_at` is a time in seconds since 1970.
    """

    ended_at: float
    request_id: str
    event: str
    fields: Mapping[str, str | int | float | bool]
    duration_s: float
    steps: Sequence[tuple[str, float]]
    attempts: Sequence[MadeAttempt]
    history: CallHistory


ListedRequest = tuple[str, Sequence[PackedAttempt], CallHistory | None]
"""What the log line of a request does not have: its steps as the value of `Server-Timing`, and what happened."""


class _Batch(NamedTuple):
    """Requests that were added together, in two objects."""

    size: int
    texts: bytes
    """A line for each: its log line and, after a tab, what policies decided. JSON has neither character as it is."""
    details: bytes
    """What the log lines do not have, as JSON."""


class RecentRequests:
    """The requests that ended last, oldest first.

    Those that come together are kept together and encoded: each of fifty objects of a request would have to be freed
    when it is in no cache of the processor any more, which takes longer than to make them.
    """

    def __init__(self, maxlen: int = 0) -> None:
        self.maxlen = maxlen
        self._batches: deque[_Batch] = deque()
        self._size = 0
        self._turn = asyncio.Lock()

    def add(self, lines: bytes, ended: Sequence[ListedRequest | None]) -> None:
        """Add requests and their log lines. A search looks at these, and at what policies have decided.

        None: a request is not listed.
        """
        if not self.maxlen:
            return
        listed = [each for each in ended if each is not None]
        if len(listed) < len(ended) or any(history for _, _, history in listed):
            lines = _with_decisions(lines, ended)
        if not listed:
            return
        self._batches.append(_Batch(len(listed), lines, _encode(listed)))
        self._size += len(listed)
        while self._size - self._batches[0].size >= self.maxlen:
            self._size -= self._batches.popleft().size

    async def search(self, look: Callable[[RecentRequest], object], *texts: str) -> None:
        """Show requests to a function, the newest first, until it returns something true.

        Those that do not have all these texts as values are passed over. Unpacking 100,000 takes 2 s, so other work is
        done in between; one search follows another.
        """
        needles = [_as_kept(text) for text in texts if text]
        async with self._turn:
            work, left = 0, self.maxlen
            for batch in reversed([*self._batches]):
                work += batch.size
                if all(needle in batch.texts for needle in needles):
                    details = _decode(batch.details)
                    for text in batch.texts.split(b"\n")[: -left - 1 : -1]:
                        detail = details.pop()
                        if not all(needle in text for needle in needles):
                            continue
                        if look(_unpack(text, *detail)):
                            return
                        work += UNPACKING
                        if work >= MOST_WORK:
                            work = 0
                            await asyncio.sleep(0)
                left -= batch.size
                if work >= MOST_WORK:
                    work = 0
                    await asyncio.sleep(0)


def _with_decisions(lines: bytes, ended: Sequence[ListedRequest | None]) -> bytes:
    """Return the lines of the requests that are listed, each followed by what policies have decided."""
    texts: list[bytes] = []
    for line, listed in zip(lines.split(b"\n"), ended, strict=True):
        if listed is not None:
            history = listed[2]
            made = NONE if history is None else history.decisions
            texts.append(b"%b\t%b" % (line, _encode(made)) if made else line)
    return b"\n".join(texts)


def _encode(value: object) -> bytes:
    try:
        return orjson.dumps(value, default=_plain)
    except orjson.JSONEncodeError:  # half of a surrogate pair in what was captured
        return json.dumps(value, default=_plain).encode()


def _decode(text: bytes) -> list[Any]:
    try:
        found: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = json.loads(text)
    return found


def _plain(value: object) -> object:
    if isinstance(value, CallHistory):
        return value.decisions, value.content
    return dict(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, tuple) else str(value)


def _as_kept(text: str) -> bytes:
    """Return a value as the text of a request has it."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:  # a lone surrogate, which no request has
        return b"\n\n"


def _unpack(text: bytes, timing: str, made: list[list[Any]], noted: list[Any] | None) -> RecentRequest:
    fields = orjson.loads(text.partition(b"\t")[0])
    request_id, event = fields["request_id"], fields["event"]
    ended_at, duration_s = datetime.fromisoformat(fields["timestamp"]).timestamp(), fields["duration_ms"] / 1000
    known = {name: value for name, value in fields.items() if name not in NOT_OF_THE_RECORD}
    attempts = [MadeAttempt(*each) for each in made]
    history = CallHistory() if noted is None else CallHistory.unpacked(*noted)
    return RecentRequest(ended_at, request_id, event, known, duration_s, read_timing(timing), attempts, history)
