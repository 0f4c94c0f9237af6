"""Sick streams, made of the canonical one, as strict clients need them after repair."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from random import Random
from typing import Any

import orjson
import pytest

from backends.upstream.dialects.repairs import DONE, REPAIRS, Repair, StreamRepairs
from proxy.wire.event import FOLLOWED, Event, Run
from proxy.wire.sse import SSEParser
from tests.upstream import CANONICAL
from tests.wire.contract import order_faults

JSON = dict[str, Any]
EVENTS: list[JSON] = [orjson.loads(line[6:]) for line in CANONICAL.splitlines() if line.startswith(b"data: {")]
CREATED, *_, COMPLETED = EVENTS


def frames(events: Iterable[Mapping[str, Any]], *, end: bytes = b"\n") -> bytes:
    """Return a stream in another spelling than the canonical one: no `event:` lines, spaces, another order of keys."""
    texts = [json.dumps(dict(reversed(event.items()))).encode() for event in events]
    return b"".join(b"data:%b%b%b" % (text, end, end) for text in texts)


def mended(stream: bytes, *kinds: Repair, chunk: int = 1 << 20) -> tuple[list[JSON], StreamRepairs]:
    """Return the events of a stream after these repairs, all of them by default, and what was repaired."""
    repairs = StreamRepairs(kinds or REPAIRS, FOLLOWED, "m")
    parser = SSEParser(repairs.followed)
    units = []
    for start in range(0, len(stream), chunk):
        units += repairs.mend(parser.feed(stream[start : start + chunk]))
    units += repairs.mend(parser.close())
    assert all(isinstance(unit, Run) or unit.type in FOLLOWED for unit in units)
    return [orjson.loads(payload) for unit in units for payload in unit.payloads()], repairs


def edited(edit: Callable[[JSON], JSON | None]) -> list[JSON]:
    """Return the canonical events after an edit, without those that it drops."""
    copies = [orjson.loads(orjson.dumps(event)) for event in EVENTS]
    return [event for copy in copies if (event := edit(copy)) is not None]


def without(*names: str) -> Callable[[JSON], JSON]:
    return lambda event: {name: value for name, value in event.items() if name not in names}


def dropping(*kinds: str) -> Callable[[JSON], JSON | None]:
    return lambda event: None if event["type"] in kinds else event


def with_response(change: Callable[[JSON], JSON]) -> Callable[[JSON], JSON]:
    return lambda event: {**event, "response": change(event["response"])} if "response" in event else event


def rotating(event: JSON) -> JSON:
    """Give every item another id in each event, as some servers do."""
    number = event["sequence_number"]
    event |= {"item_id": f"{event['item_id']}_{number}"} if "item_id" in event else {}
    event |= {"item": event["item"] | {"id": f"{event['item']['id']}_{number}"}} if "item" in event else {}
    if event is not COMPLETED and event["type"] == "response.completed":
        output = [item | {"id": f"{item['id']}_{number}"} for item in event["response"]["output"]]
        event["response"]["output"] = output
    return event


def drifting(event: JSON) -> JSON:
    """Give deltas other ids than the events that opened their items and parts."""
    return event | {"item_id": f"{event['item_id']}_x"} if event["type"].endswith(".delta") else event


def emptied(event: JSON) -> JSON:
    return with_response(lambda response: {**response, "output": []})(event)


def endless(*indexes: int) -> list[JSON]:
    """Return the canonical events without the last ones of these items, which the last event does not have either."""
    kept = [
        each for each in EVENTS if each["type"] != "response.output_item.done" or each["output_index"] not in indexes
    ]
    return [emptied(event) | {"sequence_number": number} for number, event in enumerate(kept)]


def renaming(event: JSON) -> JSON:
    return event | {"type": DONE} if event["type"] == "response.completed" else event


SICK: dict[str, tuple[list[JSON], set[str]]] = {
    "no numbers": (edited(without("sequence_number")), {"sequence_number"}),
    "one number": (edited(lambda event: event | {"sequence_number": 0}), {"sequence_number"}),
    "small responses": (
        edited(with_response(lambda response: {"id": response["id"], "object": "response", "status": response["status"], "output": response["output"]})),
        {"lifecycle"},
    ),
    "token counts without details": (
        edited(with_response(lambda response: response | {"usage": {"input_tokens": 1, "output_tokens": 2}})), {"lifecycle"},
    ),
    "responses without ids": (edited(with_response(lambda response: {**response, "id": None})), {"lifecycle"}),
    "nothing before the first item": (
        edited(dropping("response.created", "response.in_progress")), {"lifecycle", "sequence_number"},
    ),
    "no parts": (
        edited(dropping("response.content_part.added", "response.reasoning_summary_part.added")), {"openers", "sequence_number"},
    ),
    "no first events of items": (
        [event for event in EVENTS if event["type"] != "response.output_item.added" or event["output_index"] == 2],
        {"openers", "sequence_number"},
    ),
    "deltas and the end": (
        edited(lambda event: event if event["type"] in ("response.created", "response.output_text.delta", "response.output_item.done", "response.completed") and event.get("output_index", 1) == 1 and event["type"] != "response.completed" else (event | {"response": {**event["response"], "output": []}} if event["type"] == "response.completed" else None)),
        {"openers", "sequence_number", "output"},
    ),
    "an id for each event": (edited(rotating), {"item_ids"}),
    "other ids in deltas": (edited(drifting), {"item_ids"}),
    "an empty output": (edited(emptied), {"output"}),
    "items without an end": (endless(0, 1, 2), {"output", "sequence_number"}),
    "the first item without an end": (endless(0), {"output", "sequence_number"}),
    "the last item without an end": (endless(2), {"output", "sequence_number"}),
    "nothing but deltas": (
        [emptied(event) for event in EVENTS if event["type"] in ("response.created", "response.output_text.delta", "response.completed")],
        {"openers", "output", "sequence_number"},
    ),
    "no status": (edited(with_response(without("status"))), {"lifecycle"}),
    "no output": (edited(with_response(lambda response: {**response, "output": None})), {"lifecycle", "output"}),
    "another last event": (edited(renaming), {"terminal"}),
    "incomplete called completed": (
        edited(lambda event: with_response(lambda response: {**response, "status": "incomplete"})(event) if event["type"] == "response.completed" else event),
        {"terminal"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sick", "repaired"), SICK.values(), ids=SICK)
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_sick_stream_is_mended(sick: list[JSON], repaired: set[str], chunk: int, end: bytes):
    """However it is spelled and split; what was repaired is counted."""
    events, repairs = mended(frames(sick, end=end), chunk=chunk)
    last = events[-1]

    assert set(repairs.counts) - {name for name, count in repairs.counts.items() if not count} == repaired
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    assert last["type"] == f"response.{last['response']['status']}"
    ends = [event for event in events if event["type"] == "response.output_item.done"]
    done = [event["item"] for event in sorted(ends, key=lambda event: event["output_index"])]
    assert last["response"]["output"] == done
    if repaired <= {"sequence_number", "lifecycle", "item_ids", "output", "terminal"}:
        assert order_faults(events) == []


def test_without_repairs_nothing_changes():
    """Each repair is chosen by itself."""
    for sick, repaired in SICK.values():
        others = [kind for kind in REPAIRS if kind not in repaired]
        events, repairs = mended(frames(sick), *others)

        assert repairs.summary is None or set(repairs.counts) & repaired == set()
        assert [event["type"] for event in events] == [event["type"] for event in sick]


def test_a_stream_that_needs_no_repair_passes_unparsed():
    """Its units are those of the parser; a batch of deltas costs one call."""
    repairs = StreamRepairs(REPAIRS, FOLLOWED, "m")
    parser = SSEParser(repairs.followed)
    calls: list[str] = []
    for line in re.split(rb"(?<=\n\n)", CANONICAL):
        batch = parser.feed(line)
        calls.clear()
        sys.setprofile(lambda frame, kind, _: calls.append(frame.f_code.co_name) if kind == "call" else None)
        mended_batch = repairs.mend(batch)
        sys.setprofile(None)
        assert all(unit is before for unit, before in zip(mended_batch, batch, strict=True))
        if b"output_text.delta" in line:
            assert calls == ["mend"]
    assert repairs.summary is None


@pytest.mark.parametrize("seed", range(10))
def test_repairs_do_not_depend_on_how_frames_arrive(seed: int):
    """Events that are missing are added, whether frames come one by one or all at once."""
    random = Random(seed)
    for _ in range(60):
        sick = [event for event in EVENTS if random.random() > 0.2]
        if random.random() < 0.5:
            sick.insert(random.randrange(len(sick)), {"type": "response.x.progress", "output_index": 1})
        if random.random() < 0.5:
            sick.insert(random.randrange(len(sick)), {"type": "keepalive"})
        sick = [event | {"sequence_number": number} for number, event in enumerate(sick)]
        whole, single = [
            [(event["type"], event["sequence_number"]) for event in mended(frames(sick), chunk=chunk)[0]]
            for chunk in (1 << 20, 64)
        ]

        assert single == whole
        assert all(number < following for (_, number), (_, following) in pairwise(single))


@pytest.mark.parametrize(
    "odd",
    [
        b"data: {nope\n\n", b"data: [1]\n\n", b": comment\n\n", b"event: x\n\n", b'data: {"type":5,"item":7}\n\n',
        b'data: {"type":"response.output_item.done","output_index":"x","item":[]}\n\n',
        b'data: {"type":"response.in_progress","response":[]}\n\n',
        b'data: {"type":"response.output_text.delta","delta":7,"output_index":null}\n\n',
        b'data: {"type":"response.output_item.added","output_index":9,"item":%b1%b}\n\n' % (b"[" * 300, b"]" * 300),
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, 6])
def test_odd_frames_break_nothing(odd: bytes, at: int):
    """They pass, and the stream still has its end."""
    for sick in (EVENTS, edited(without("sequence_number"))):
        stream = b"".join([frames(sick[:at]), odd, frames(sick[at:])])
        parser = SSEParser(FOLLOWED)
        repairs = StreamRepairs(REPAIRS, FOLLOWED, "m")
        units = repairs.mend([*parser.feed(stream), *parser.close()])
        assert isinstance(units[-1], Event)
        assert units[-1].type == "response.completed"
        assert units[-1].response["output"] == COMPLETED["response"]["output"]


ODD: list[Any] = [None, -1, 2**53, "x", [], {}, [1], {"id": 1}, True, 1.5, {"type": []}]


def mutated(value: Any, random: Random) -> Any:
    """Return a JSON value with fields removed or replaced by others, anywhere."""
    if isinstance(value, list):
        return [mutated(inner, random) for inner in value if random.random() > 0.05]
    if not isinstance(value, dict):
        return value
    kept = {name: inner for name, inner in value.items() if random.random() > 0.04}
    return {
        name: random.choice(ODD) if random.random() < 0.04 else mutated(inner, random) for name, inner in kept.items()
    }


@pytest.mark.parametrize("seed", range(20))
def test_no_stream_breaks_the_repairs(seed: int):
    """Whatever an upstream sends, in whatever order, the repairs return frames of JSON."""
    random = Random(seed)
    for _ in range(10):
        sick = [mutated(event, random) if random.random() < 0.4 else event for event in EVENTS if random.random() > 0.1]
        if random.random() < 0.3:
            random.shuffle(sick)
        events, _repairs = mended(frames(sick), chunk=random.choice([50, 300, 1 << 20]))

        assert len(events) >= len(sick)
