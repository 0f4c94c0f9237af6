"""The record of a reply: items, final response, sequence numbers, and the parts of items that are still open."""

import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.body_events import events_of_body
from proxy.wire.errors import Unavailable
from proxy.wire.event import FOLLOWED, Event, MessageRun, Run
from proxy.wire.items import JSON
from proxy.wire.partial_item import index_of
from proxy.wire.sse import SSEParser
from proxy.wire.sse_frame import frame_of
from proxy.wire.transcript import JOINED_RUNS, LOG_BYTES, ROOM_BYTES, Transcript
from tests import examples
from tests.wire.streams import (
    CANONICAL,
    PARALLEL_CALLS,
    RECORDING,
    added,
    delta,
    done,
    frame,
    function_call,
    stream_of,
    transcript_of,
    transcript_of_one_read,
)

PART = {
    "type": "response.content_part.added", "item_id": "item_0", "output_index": 0, "content_index": 0,
    "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
}  # fmt: skip


class CountedRun(Run):
    """A run that counts how often it is parsed."""

    count = 0

    def payloads(self) -> Iterator[bytes]:
        self.count += 1
        return super().payloads()


def feed(transcript: Transcript, stream: bytes, size: int) -> None:
    """Feed a stream that comes in pieces of this size."""
    parser = SSEParser(FOLLOWED)
    for start in range(0, len(stream), size):
        transcript.add(parser.feed(stream[start : start + size]))


def event(**data: object) -> Event:
    return Event(str(data["type"]), data=data)


def completed(**response: object) -> bytes:
    return frame(type="response.completed", response=response)


def test_a_finished_stream_has_a_terminal_event():
    """A stream that lacks it has to be ended by the gateway."""
    transcript = transcript_of(CANONICAL)

    assert transcript.terminal is not None
    assert transcript.terminal.type == "response.completed"
    assert transcript.is_ended
    assert transcript_of(CANONICAL[:-1]).terminal is None
    assert not transcript_of(CANONICAL[:-1]).is_ended


def test_a_response_in_one_body_stands_for_all_of_its_events():
    """Its last event is made once; an event that a rule puts in its place replaces it."""
    response, transcript = {"id": "r", "status": "incomplete", "output": [{"id": "a"}]}, Transcript()
    before = transcript.is_ended, transcript.final, transcript.terminal
    transcript.add_whole(response, 100)
    terminal = transcript.terminal

    assert before == (False, None, None)
    assert (transcript.is_ended, transcript.is_started, transcript.response_bytes) == (True, True, 100)
    assert transcript.final is transcript.response is response
    assert (transcript.items, transcript.lacks_output) == ([{"id": "a"}], False)
    assert terminal is transcript.terminal
    assert terminal is not None
    assert (terminal.type, terminal.response) == ("response.incomplete", response)

    transcript.add_body([Event("response.completed", data={"type": "response.completed", "response": {"id": "s"}})])

    assert (transcript.final, transcript.response) == ({"id": "s"}, {"id": "s"})


def test_any_frame_starts_a_stream():
    """A comment is enough: afterwards an error is no HTTP status any more."""
    silent = Transcript()
    silent.add([])

    assert silent.is_started is False
    assert transcript_of([b": hi\n\n"]).is_started is True
    assert transcript_of(CANONICAL[:1]).is_started is True


def test_the_first_lifecycle_event_and_errors_are_recorded():
    """Close-out repeats the response that began, and an error only once."""
    transcript = transcript_of([*CANONICAL[:2], frame(type="error", message="Overloaded.")])

    assert transcript.created is not None
    assert transcript.created.response["id"] == "resp_0001"
    assert (transcript.error is not None, transcript_of(CANONICAL).error) == (True, None)


def test_items_are_in_the_order_of_their_output_index():
    """Parallel items may be finished in any order."""
    sent = stream_of(done(1, id="b"), done(10, id="c"), done(0, id="a"))

    assert [item["id"] for item in transcript_of(sent).items] == ["a", "b", "c"]


def test_an_item_that_is_done_twice_counts_once():
    """The second event replaces the first."""
    sent = stream_of(done(0, id="a", n=1), done(0, id="a", n=2), done(0, id="b"), done(1, n=1), done(1, n=2))

    assert transcript_of(sent).items == [{"id": "a", "n": 2}, {"id": "b"}, {"n": 2}]


@pytest.mark.parametrize("item", [{"id": ["a"]}, {"id": {"a": 1}}, {"id": None}, {"id": 7}, "text", 3, [1]])
def test_a_finished_item_may_have_any_shape(item: object):
    """Upstreams are not trusted: an id of another type identifies nothing, and the item is kept as it is."""
    transcript = Transcript()
    transcript.add([event(type="response.output_item.done", output_index=0, item=item)])

    assert transcript.items == [item]


@pytest.mark.parametrize("final", [{"output": []}, {"output": None}, {}])
def test_a_missing_output_is_filled_from_the_items(final: JSON):
    """Some servers leave `output` empty in the last event."""
    transcript = transcript_of([*stream_of(done(0, id="a")), completed(id="resp_1", **final)])

    assert transcript.response == {"id": "resp_1", "output": [{"id": "a"}]}


@pytest.mark.parametrize(("status", "ended"), [("completed", "completed"), ("failed", "incomplete")])
def test_a_missing_output_has_items_without_an_end_too(status: str, ended: str):
    """With what was sent of them, in the order of their indexes."""
    call = function_call(0)
    sent = stream_of(added(0, **call), delta("function_call_arguments", "{}"), done(1, id="b"))
    transcript = transcript_of([*sent, completed(status=status, output=[])])

    assert transcript.response["output"] == [{**call, "arguments": "{}", "status": ended}, {"id": "b"}]


def test_the_output_of_the_final_response_is_kept_as_sent():
    """The last event is right, whatever the items were."""
    transcript = transcript_of([*stream_of(done(0, id="a")), completed(output=[{"id": "b"}])])

    assert transcript.terminal is not None
    assert transcript.response is transcript.terminal.response
    assert transcript_of([completed(output=[])]).response == {"output": []}


@pytest.mark.parametrize("cut", range(1, len(CANONICAL)))
def test_the_next_number_follows_the_last_event(cut: int):
    """The same whether the frames came one by one or in one read."""
    assert transcript_of(CANONICAL[:cut]).next_number == cut
    assert transcript_of_one_read(b"".join(CANONICAL[:cut])).next_number == cut


def test_frames_without_a_number_do_not_reset_the_count():
    """Comments, events without a number and frames that hold no JSON are skipped."""
    silent = [b": keep-alive\n\n", b'data: {"type":"acme:beep"}\n\n', b"data: no json\n\n"]

    assert transcript_of([*CANONICAL[:9], *silent]).next_number == 9
    assert transcript_of([*CANONICAL[:9], b"".join(silent)]).next_number == 9
    assert transcript_of([*CANONICAL[:10], *silent]).next_number == 10
    assert transcript_of([*CANONICAL[:9], CANONICAL[9] + b"".join(silent)]).next_number == 10


@pytest.mark.parametrize("number", ["7", None, 1.5, [1], True, -1, 2**53, 2**64 - 1])
def test_a_number_that_not_every_client_can_read_is_ignored(number: object):
    """Then the count begins at 0, as in streams of servers that have no numbers."""
    assert transcript_of([frame(type="response.created", sequence_number=number)]).next_number == 0
    assert transcript_of([b": hi\n\n"]).next_number == 0
    assert Transcript().next_number == 0


def test_an_open_item_keeps_the_text_that_was_sent():
    """What the client has read is not taken back."""
    assert transcript_of(CANONICAL[:11]).cut_open_items() == [
        (1, {
            "id": "msg_0001", "type": "message", "status": "incomplete", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hel", "annotations": [], "logprobs": []}],
        }),
    ]  # fmt: skip


def test_parallel_items_are_cut_each_with_its_own_text():
    """The output_index of a delta decides which item it belongs to."""
    for transcript in (transcript_of(PARALLEL_CALLS), transcript_of_one_read(b"".join(PARALLEL_CALLS))):
        assert transcript.items == [function_call(1, "b", "completed")]
        assert transcript.cut_open_items() == [
            (0, function_call(0, "aA", "incomplete")),
            (2, function_call(2, "c", "incomplete")),
        ]


def test_cutting_changes_no_event():
    """The events that were sent stay what they were, and a second cut gives the same."""
    sent = [event(**added(0, id="a", type="function_call", arguments="")), event(**PART)]
    transcript = Transcript()
    transcript.add(
        [*sent, Run(frame(**delta("function_call_arguments", "x"))), Run(frame(**delta("output_text", "y")))]
    )

    assert transcript.cut_open_items() == transcript.cut_open_items()
    assert [unit.data for unit in sent] == [added(0, id="a", type="function_call", arguments=""), PART]


def test_an_item_is_cut_from_its_own_events_when_an_earlier_one_had_its_index():
    """Servers without indexes give every item the same one."""
    sent = stream_of(
        added(3, id="open"),
        added(0, id="first", type="function_call"),
        delta("function_call_arguments", "old"),
        done(0, id="first", type="function_call", arguments="old"),
        added(0, id="second", type="function_call"),
        delta("function_call_arguments", "new"),
    )

    assert transcript_of(sent).cut_open_items() == [
        (0, {"id": "second", "type": "function_call", "arguments": "new", "status": "incomplete"}),
        (3, {"id": "open", "status": "incomplete"}),
    ]


def test_refusals_and_finished_parts_are_kept_beside_each_other():
    """A refusal is a part of its own type; a part that was finished stays whole."""
    note = {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example", "title": "A"}
    whole = {"type": "output_text", "text": "No.", "annotations": [note], "logprobs": []}
    sent = stream_of(
        added(0, id="item_0", type="message", status="in_progress", role="assistant", content=[]),
        PART,
        delta("output_text", "No.", content_index=0, logprobs=[]),
        {**PART, "type": "response.content_part.done", "part": whole},
        {**PART, "content_index": 1, "part": {"type": "refusal", "refusal": ""}},
        delta("refusal", "I ", content_index=1),
        delta("refusal", "won't", content_index=1),
    )
    ((_, item),) = transcript_of(sent).cut_open_items()

    assert item["content"] == [whole, {"type": "refusal", "refusal": "I won't"}]


@pytest.mark.parametrize(
    ("item", "deltas", "kept"),
    [
        ({"type": "custom_tool_call", "call_id": "c", "name": "n", "input": ""}, [("custom_tool_call_input", {})], {"input": "ab"}),
        ({"type": "mcp_call", "arguments": None}, [("mcp_call_arguments", {})], {"arguments": "ab"}),
        ({"type": "code_interpreter_call", "code": ""}, [("code_interpreter_call_code", {})], {"code": "ab"}),
        ({"type": "reasoning", "summary": []}, [("reasoning_summary_text", {"summary_index": 0})], {"summary": [{"type": "summary_text", "text": "ab"}]}),
        ({"type": "reasoning", "summary": []}, [("reasoning_text", {"content_index": 0})], {"content": [{"type": "reasoning_text", "text": "ab"}]}),
        ({"type": "message", "content": []}, [("refusal", {"content_index": 0})], {"content": [{"type": "refusal", "refusal": "ab"}]}),
        (
            {"type": "message", "content": []},
            [("output_text", {"content_index": 1}), ("output_text", {"content_index": 0})],
            {"content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "ab"}] * 2},
        ),
        ({"type": "acme:beep"}, [("acme:beep", {})], {}),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else None,
)  # fmt: skip
def test_parts_that_were_not_announced_are_kept(item: JSON, deltas: list[tuple[str, JSON]], kept: JSON):
    """Some servers send deltas without the part; of an unknown item type only the item itself is kept."""
    texts = [delta(kind, text, **more) for kind, more in deltas for text in ("a", "b")]

    assert transcript_of(stream_of(added(0, **item), *texts)).cut_open_items() == [
        (0, item | kept | {"status": "incomplete"}),
    ]


def test_an_endless_item_keeps_its_beginning():
    """Of a longer item only LOG_BYTES of frames are kept, and the item is closed with the text in them."""
    transcript = Transcript()
    transcript.add([event(**added(0, id="a", type="function_call"))])
    transcript.add([Run(frame(**delta("function_call_arguments", "begin")))])
    megabyte = Run(frame(**delta("function_call_arguments", "x" * 2**20)))
    for _ in range(40):
        transcript.add([megabyte])
    ((_, item),) = transcript.cut_open_items()

    assert item["arguments"].startswith("beginx")
    assert LOG_BYTES - 2**20 - 1000 < len(item["arguments"]) < LOG_BYTES
    assert LOG_BYTES - 2**20 - 1000 < transcript.kept_bytes < LOG_BYTES + 1000


def test_the_beginning_of_an_endless_item_has_no_gap():
    """After a frame that did not fit, smaller ones are not kept either; the next item is kept from its beginning."""
    transcript = Transcript()
    transcript.add([event(**added(0, id="a", type="function_call"))])
    for text in ("begin", "x" * LOG_BYTES, "end"):
        transcript.add([Run(frame(**delta("function_call_arguments", text)))])
    cut = transcript.cut_open_items()
    transcript.add([event(**done(0, id="a")), Run(b": hi\n\n"), event(**added(1, id="b", type="function_call"))])
    transcript.add([Run(frame(**delta("function_call_arguments", "next", 1)))])

    assert cut[0][1]["arguments"] == "begin"
    assert transcript.cut_open_items()[0][1]["arguments"] == "next"


def test_an_item_that_begins_after_the_limit_is_still_closed_as_itself():
    """Its text is lost, not its id and its type; text of an earlier item with its index is not taken for its own."""
    transcript = Transcript()
    transcript.add([event(**added(0, id="a", type="function_call")), event(**added(1, id="b", type="function_call"))])
    transcript.add([Run(frame(**delta("function_call_arguments", "old", 1))), event(**done(1, id="b"))])
    megabyte = Run(frame(**delta("function_call_arguments", "x" * 2**20)))
    transcript.add([megabyte] * 20)
    transcript.add([event(**added(1, id="c", type="function_call"))])
    transcript.add([Run(frame(**delta("function_call_arguments", "new", 1)))])

    assert transcript.cut_open_items()[1] == (1, {"id": "c", "type": "function_call", "status": "incomplete"})


def test_many_open_items_share_one_log():
    """A frame is kept once and parsed once, not once for each open item."""
    transcript = Transcript()
    transcript.add([event(**added(index, **function_call(index))) for index in range(200)])
    runs = [CountedRun(frame(**delta("function_call_arguments", "x" * 10_000, index))) for index in range(200)]
    tracemalloc.start()
    try:
        for run in runs:
            transcript.add([run])
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    items = transcript.cut_open_items()

    assert [len(item["arguments"]) for _, item in items] == [10_000] * 200
    assert [run.count for run in runs] == [1] * 200
    assert kept_bytes < sum(len(run.sse) for run in runs)


def test_frames_between_items_are_not_kept():
    """Only what may be needed to close an item is; a long stream of finished items costs no memory."""
    transcript = Transcript()
    for _ in range(3):
        transcript.add([event(**added(0, id="a")), Run(CANONICAL[5]), event(**done(0, id="a")), Run(CANONICAL[5])])

    assert transcript._log == []


def test_the_size_of_what_is_kept_is_known():
    """Items count as long as the reply lasts, other frames only while they are kept."""
    opened, text, closed = event(**added(0, id="a")), Run(CANONICAL[5]), event(**done(0, id="a"))
    transcript, sizes = Transcript(), []
    for unit in (text, opened, text, closed, text):
        transcript.add([unit])
        sizes.append(transcript.kept_bytes)
    begun, items = opened.count_parsed() + len(opened.sse), opened.count_parsed() + closed.count_parsed()

    assert sizes == [0, begun, begun + len(text.sse), items, items]


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_what_is_kept_of_one_reply_is_limited(monkeypatch: pytest.MonkeyPatch, missing_bytes: int):
    """The last byte of the limit is included, for batches and for single runs alike."""
    run, transcript = Run(CANONICAL[5]), Transcript()
    transcript.add([event(**added(0, id="a"))])
    room = len(run.raw) - missing_bytes
    monkeypatch.setattr("proxy.wire.transcript.MAX_KEPT_BYTES", transcript.kept_bytes + room)

    assert transcript.has_room_for(len(run.raw)) == (missing_bytes == 0)
    assert transcript.forward_run(lambda _run: True, lambda _size: None, run.raw) == (missing_bytes == 0)


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_forwarded_run_is_recorded_if_it_is_taken(is_taken: bool):
    """Its memory is reserved before, with some more, so that not each run needs a call for that."""
    run, transcript, reserved = CANONICAL[5], Transcript(), []
    transcript.add([event(**added(0, id="a"), sequence_number=2)])
    before = transcript.kept_bytes
    size = len(run)

    assert transcript.forward_run(lambda _run: is_taken, reserved.append, run) is is_taken
    assert reserved == [size + ROOM_BYTES]
    assert transcript.kept_bytes == before + (size if is_taken else 0)
    assert transcript.next_number == (6 if is_taken else 3)


def test_memory_of_forwarded_runs_is_reserved_before_they_are_offered():
    """Never less than what is kept, and never much more."""
    transcript, reserved = Transcript(), []
    transcript.add([event(**added(0, id="a"))])
    before = transcript.kept_bytes
    for size in (1, 900, 200, 5_000, 1, *[100] * 50):
        assert transcript.forward_run(lambda _run: True, reserved.append, b"x" * size)
        assert 0 <= sum(reserved) - (transcript.kept_bytes - before) <= ROOM_BYTES

    assert len(reserved) < 10


def test_a_run_for_which_there_is_no_memory_is_left_for_a_batch():
    """The guard frees memory for that, or ends the stream."""
    transcript, offered = Transcript(), []
    transcript.add([event(**added(0, id="a"))])
    before = transcript.kept_bytes

    def refuse(_size: int) -> None:
        raise Unavailable("no memory", code="memory_exhausted")

    assert not transcript.forward_run(offered.append, refuse, CANONICAL[5])
    assert (offered, transcript.kept_bytes) == ([], before)


def test_a_run_after_frames_that_are_kept_no_more_is_left_for_a_batch():
    """Which drops them, as no item is open."""
    run, transcript = Run(CANONICAL[5]), Transcript()
    transcript.keep_frames(len(run.raw))
    transcript.add([run, run])
    is_taken = [transcript.forward_run(lambda _run: True, lambda _size: None, run.raw)]
    transcript.add([run])
    is_taken.append(transcript.forward_run(lambda _run: True, lambda _size: None, run.raw))

    assert (transcript.keeps_frames, is_taken, transcript.kept_bytes) == (False, [False, True], 0)


@pytest.mark.parametrize("kind", [Run, MessageRun])
def test_runs_that_come_one_by_one_are_joined(kind: type[Run]):
    """A stream has many, and each would take memory for itself; the text of an open item stays complete."""
    transcript, texts = Transcript(), [str(number) for number in range(3 * JOINED_RUNS + 2)]
    transcript.add([event(**added(0, **function_call(0)))])
    for number, text in enumerate(texts):
        data = delta("function_call_arguments", text) | {"sequence_number": number}
        raw = orjson.dumps(data) if kind is MessageRun else frame(**data)
        assert transcript.forward_run(lambda _run: True, lambda _size: None, raw, kind)

    assert len(transcript._log) == 1 + 3
    assert transcript.last.raw == raw
    assert transcript.cut_open_items()[0][1]["arguments"] == "".join(texts)
    assert transcript.next_number == len(texts)


def test_the_next_number_is_known_whatever_is_kept(monkeypatch: pytest.MonkeyPatch):
    """Of open items that are too long only the beginning is kept, and of closed ones nothing but the items."""
    opened, closed = event(**added(0, id="a"), sequence_number=0), event(**done(0, id="a"))
    deltas = [Run(frame(type="x.delta", sequence_number=number)) for number in range(1, 4)]
    monkeypatch.setattr("proxy.wire.transcript.LOG_BYTES", len(opened.sse) + len(deltas[0].sse))
    transcript, numbers = Transcript(), []
    for unit in (opened, *deltas, Run(b": hi\n\n"), closed, Run(b": hi\n\n")):
        transcript.add([unit])
        numbers.append(transcript.next_number)

    assert numbers == [1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("number", ["created", "output_item.added", "output_item.done", "completed"])
def test_what_is_parsed_and_kept_counts_by_its_values(number: str):
    """An event of many small values takes far more memory than its frame."""
    values: dict[str, Any] = {"values": [{}] * 10_000}
    held = event(type=f"response.{number}", output_index=0, item=values, response=values)
    held.encode(0)  # as it was received
    transcript = Transcript()
    size = transcript.size_of([held])
    transcript.add([held])

    assert size >= transcript.kept_bytes >= 10_000 * sys.getsizeof({})


def test_the_most_that_is_kept_of_a_batch_is_known_before():
    """An item counts for itself and for the frame of its event; other frames count while they are kept."""
    opened, text, closed = event(**added(0, id="a")), Run(CANONICAL[5]), event(**done(0, id="a"))
    transcript, sizes = Transcript(), []
    for batch in ([text], [opened, text], [text], [closed], [text]):
        sizes.append(transcript.size_of(batch))
        transcript.add(batch)
    transcript.keep_frames(10_000)

    begun, ended = (each.count_parsed() + len(each.sse) for each in (opened, closed))

    assert sizes == [0, begun + len(text.sse), len(text.sse), ended, 0]
    assert transcript.size_of([text]) == len(text.sse)


def test_a_body_is_recorded_without_being_encoded():
    """Its events stand for the body, and may be too deep to encode."""
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    response = {"id": "resp_1", "status": "completed", "output": [{"id": "a", "deep": deep}]}
    transcript = Transcript()
    transcript.add_body(events_of_body(response))

    assert (transcript.is_started, transcript.kept_bytes) == (True, 0)
    assert (transcript.items, transcript.response) == (response["output"], response)


def test_all_frames_are_kept_on_demand():
    """Complete, in order, whatever the reads brought."""
    for size in (1, 100, 10_000):
        transcript = Transcript()
        transcript.keep_frames(len(RECORDING))
        feed(transcript, RECORDING, size)

        assert transcript.frames() == b"".join(CANONICAL)


def test_messages_are_kept_as_frames_where_frames_are_kept():
    """Otherwise as they came, which is shorter."""
    texts = [b'{"type":"response.output_text.delta","sequence_number":%d,"delta":"a"}' % number for number in (1, 2)]
    opened = Event("response.output_item.added", payload=orjson.dumps(added(0, id="a")))
    run = MessageRun(b"\n".join(texts))
    kept, others = Transcript(), Transcript()
    kept.keep_frames(10_000)
    sizes = [(transcript.size_of([run, opened]), transcript.add([run, opened])) for transcript in (others, kept)]

    assert kept.frames() == b"".join(frame_of("response.output_text.delta", text) for text in texts) + opened.sse
    assert kept.kept_bytes >= len(kept.frames() or b"") > others.kept_bytes - opened.count_parsed() > 0
    assert sizes[0][0] < sizes[1][0]
    assert (kept.next_number, others.next_number) == (3, 3)


def test_it_is_noted_when_frames_came():
    """In seconds since the first ones, with the length of all frames that had come then."""
    times, transcript = iter([100.0, 100.5, 102.0]), Transcript()
    transcript.keep_frames(len(RECORDING), times.__next__)
    for received in CANONICAL[:3]:
        transcript.add([Run(received)])

    lengths = [*map(len, CANONICAL[:3])]
    assert transcript.marks == [(0.0, lengths[0]), (0.5, sum(lengths[:2])), (2.0, sum(lengths))]


@pytest.mark.parametrize("missing_bytes", [1, 500, 5000])
def test_frames_beyond_the_limit_are_not_kept_at_all(missing_bytes: int):
    """Half a stream is no stream; items are closed as before."""
    transcript = Transcript()
    transcript.keep_frames(sum(map(len, CANONICAL)) - missing_bytes)
    feed(transcript, RECORDING, 100)
    transcript.add([Run(b": hi\n\n")])

    assert transcript.frames() is None
    assert transcript._log == []


def test_the_limit_includes_its_last_byte():
    """A stream of exactly that many bytes is kept."""
    transcript = Transcript()
    transcript.keep_frames(sum(map(len, CANONICAL)))
    transcript.add([Run(sse) for sse in CANONICAL])

    assert transcript.frames() == b"".join(CANONICAL)


def test_an_open_item_is_closed_whole_when_the_frames_exceeded_their_limit():
    """The two limits are independent."""
    transcript = Transcript()
    transcript.keep_frames(100)
    transcript.add([event(**added(0, id="a", type="function_call"))])
    transcript.add([Run(frame(**delta("function_call_arguments", text))) for text in ("a", "b", "c")])

    assert transcript.frames() is None
    assert transcript.cut_open_items()[0][1]["arguments"] == "abc"


@pytest.mark.parametrize("is_open", [False, True])
def test_dropped_frames_are_not_kept_any_longer_except_those_of_open_items(is_open: bool):
    """The caller of a stream has nothing to do with the cache: an item of it can still be closed."""
    transcript = Transcript()
    transcript.keep_frames(10_000)
    kept = [added(0, id="a", type="function_call")] if is_open else []
    transcript.add([event(**data) for data in kept])
    transcript.add([Run(frame(**delta("function_call_arguments", "a")))])
    before = transcript.kept_bytes

    assert transcript.drop_frames()
    assert not transcript.drop_frames()
    assert transcript.frames() is None
    assert transcript.kept_bytes == (before if is_open else 0)
    assert len(transcript._log) == (2 if is_open else 0)
    assert [item["arguments"] for _, item in transcript.cut_open_items()] == ["a"] * is_open


def test_frames_are_kept_only_on_demand():
    """Without a demand there are none."""
    assert transcript_of(CANONICAL).frames() is None


@pytest.mark.parametrize(("value", "index"), [(3, 3), (0, 0), (None, 0), ("3", 0), (1.5, 0), ([3], 0)])
def test_an_index_of_another_type_is_0(value: object, index: int):
    """Items of servers without indexes are the first."""
    assert index_of({"output_index": value}) == index
    assert index_of({}) == 0
    assert index_of({"content_index": value}, "content_index") == index


FIELDS = st.dictionaries(
    st.sampled_from(["output_index", "item", "part", "delta", "sequence_number", "content_index"]),
    examples.JSON | st.integers(0, 2) | st.fixed_dictionaries({"id": examples.JSON}),
)
KINDS = st.sampled_from([
    "response.created", "response.output_item.added", "response.output_item.done", "response.content_part.added",
    "response.output_text.delta", "response.completed", "error",
])  # fmt: skip


@examples.NO_DEADLINE
@given(st.lists(st.tuples(KINDS, FIELDS), max_size=8))
def test_no_event_breaks_the_transcript(events: list[tuple[str, JSON]]):
    """Fields of any type: every property has a value of its own type."""
    transcript = Transcript()
    transcript.keep_frames(1000)
    transcript.add([event(**{**data, "type": kind}) for kind, data in events])

    assert isinstance(transcript.next_number, int)
    assert all(item["status"] == "incomplete" for _, item in transcript.cut_open_items())
    assert isinstance(transcript.items, list)
