"""What an upstream says beside the events of turns: answers to steering and injected input, and what these begin.

Accepted steering ends in a response that no message has asked for, in `response.steer.pending`, or in a failure. The
events of that response are a turn of their own.

Source: openai-python (ResponseSteerEvent, BetaResponseInjectEvent)
"""

from collections import Counter
from collections.abc import Callable, Mapping

from backends.upstream.websocket.answers import TurnAnswer
from proxy.lane import CallerConnection
from proxy.wire.event import Event


class Steering:
    """The steering of the responses of one connection to an upstream; `backend` is its name."""

    def __init__(self, caller: CallerConnection, backend: str) -> None:
        self._caller = caller
        self._backend = backend
        self._accepted: Counter[object] = Counter()  # by the response that is steered
        self._expected: dict[str | None, object] = {}  # the steered response of a lane, until it is clear what follows

    def is_expected(self, lane: str | None) -> bool:
        """Whether an accepted steering of a finished response may still begin another one in this lane."""
        return lane in self._expected

    def expect(self, turn: TurnAnswer) -> None:
        """Record that a turn has ended: the steering accepted for it comes next."""
        if self._accepted[turn.response_id] > 0:
            self._expected[turn.lane] = turn.response_id

    def adopt(self, turn: TurnAnswer, before: TurnAnswer) -> None:
        """Make a turn of a response that nothing asked for, once the one before it was sent."""
        steered = self._expected.pop(turn.lane)
        self._accepted.pop(steered, None)
        _after(before, lambda: self._caller.adopt(turn, self._backend, steered))

    def answer(self, event: Event, turns: Mapping[str | None, TurnAnswer]) -> None:
        """Pass an answer on to the caller. `turns` are the last ones of each lane."""
        fields = event.data
        steer = fields.get("steer")
        named = steer if isinstance(steer, dict) else {}
        response_id = named.get("previous_response_id", fields.get("response_id"))
        turn = next((turn for turn in turns.values() if turn.response_id == response_id), None)
        lane = None if turn is None else turn.lane
        self._count(event.type, response_id, turn, has_id="id" in named)
        _after(turn, lambda: self._caller.notify(event.json, lane))

    def _count(self, kind: str, response_id: object, turn: TurnAnswer | None, *, has_id: bool) -> None:
        if kind == "response.steer.accepted" and turn is not None:
            self._accepted[response_id] += 1
            if turn.is_complete:
                self.expect(turn)
        elif kind == "response.steer.pending":
            self._accepted.pop(response_id, None)
        elif kind == "response.steer.failed" and has_id:
            self._accepted[response_id] -= 1
        if self._accepted[response_id] <= 0:
            del self._accepted[response_id]
            self._expected = {lane: known for lane, known in self._expected.items() if known != response_id}


def _after(turn: TurnAnswer | None, action: Callable[[], None]) -> None:
    """Do something now, or when all events of a turn that has ended were sent."""
    if turn is not None and turn.is_complete and not turn.is_closed:
        turn.after.append(action)
    else:
        action()
