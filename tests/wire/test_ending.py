"""Streams that do not end by themselves, ended after each of their events."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIError

from proxy.wire.ending import Progress, stopped_body
from proxy.wire.errors import BackendError
from proxy.wire.event import TERMINALS, TRACKED, Event, body_events, data_of, frame_of
from proxy.wire.items import JSON
from proxy.wire.sse import SSEParser
from tests import values
from tests.wire.contract import event_faults, frames_faults, heard, order_faults, response_faults, sdk_before

RECORDED = (Path(__file__).parent.parent / "data" / "canonical.sse").read_bytes()
CANONICAL = [frame + b"\n\n" for frame in RECORDED.split(b"\n\n") if b'"type"' in frame]
CREATED = data_of(CANONICAL[0])
CUT = BackendError("The upstream's stream ended before the response did.", code="upstream_cut")
# After each of the canonical events but the last.
CUTS = range(1, len(CANONICAL))


def after(frames: Sequence[bytes]) -> Progress:
    """How far a stream has come that brought these frames, one by one."""
    progress = Progress()
    parser = SSEParser(TRACKED)
    for frame in frames:
        progress.see(parser.feed(frame))
    return progress


def after_one_batch(stream: bytes) -> Progress:
    progress = Progress()
    progress.see(SSEParser(TRACKED).feed(stream))
    return progress


def stream_of(*events: JSON) -> list[bytes]:
    """Frames of these events, numbered, after the two that every stream begins with."""
    return CANONICAL[:2] + [frame_of(data["type"], data | {"sequence_number": 2 + i}) for i, data in enumerate(events)]


def faults(sent: Sequence[bytes], ending: Sequence[Event]) -> list[str]:
    """What is wrong with a stream that was ended so."""
    told = [data_of(frame) for frame in sent] + [dict(event.data) for event in ending]
    wrong = [fault for event in ending for fault in event_faults(_with_known_reason(event.data))]
    return order_faults(told, cut=True) + frames_faults(ending) + wrong


def _with_known_reason(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The reason of a stop is a policy's name, which the lists of OpenAI's types do not have: the one thing we add."""
    if data["type"] != "response.incomplete":
        return data
    return data | {"response": data["response"] | {"incomplete_details": {"reason": "max_output_tokens"}}}


def added(index: int, **item: object) -> JSON:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def delta(kind: str, text: str, index: int = 0, **more: object) -> JSON:
    return {"type": f"response.{kind}.delta", "item_id": f"item_{index}", "output_index": index, "delta": text, **more}


MESSAGE = added(0, id="item_0", type="message", status="in_progress", role="assistant", content=[])
PART = {
    "type": "response.content_part.added", "item_id": "item_0", "output_index": 0, "content_index": 0,
    "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
}  # fmt: skip


def call(index: int) -> JSON:
    return added(
        index,
        id=f"item_{index}",
        type="function_call",
        status="in_progress",
        call_id=f"call_{index}",
        name="f",
        arguments="",
    )


@pytest.mark.parametrize("cut", CUTS)
def test_a_failure_after_any_event(cut: int):
    """What is open is closed just as a stop closes it, the error is told, and one terminal ends the stream."""
    ending = after(CANONICAL[:cut]).failed(CUT)
    *closed, stop = after(CANONICAL[:cut]).stopped("x")

    assert faults(CANONICAL[:cut], ending) == []
    assert [event.type for event in ending[-2:]] == ["error", "response.failed"]
    assert [event.frame for event in ending[:-2]] == [event.frame for event in closed]
    assert ending[-1].response["output"] == stop.response["output"]
    assert [event.data["sequence_number"] for event in ending] == list(range(cut, cut + len(ending)))


@pytest.mark.parametrize("cut", CUTS)
def test_a_stop_after_any_event(cut: int):
    """What is open is closed as it stands, and the response is incomplete for the reason given."""
    ending = after(CANONICAL[:cut]).stopped("max_tool_calls")

    assert faults(CANONICAL[:cut], ending) == []
    assert ending[-1].type == "response.incomplete"
    assert ending[-1].response["incomplete_details"] == {"reason": "max_tool_calls"}
    assert ending[-1].response["usage"] is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("cut", CUTS)
def test_it_makes_no_difference_how_the_events_came(cut: int, end: bytes):
    """One by one or all in one read, in whatever line ends: the same end."""
    sent = b"".join(CANONICAL[:cut]).replace(b"\n", end) + b": x\n\n"
    stopped = [event.frame for event in after(CANONICAL[:cut]).stopped("x")]
    failed = [event.frame for event in after(CANONICAL[:cut]).failed(CUT)]

    assert [event.frame for event in after_one_batch(sent).stopped("x")] == stopped
    assert [event.frame for event in after_one_batch(sent).failed(CUT)] == failed


async def test_the_sdk_hears_every_stopped_stream():
    """Its helper takes the closers and the last event as if the model had ended so."""
    endings = {cut: after(CANONICAL[:cut]).stopped("max_tool_calls") for cut in CUTS}
    bodies = [b"".join(CANONICAL[:cut]) + b"".join(e.frame for e in ending) for cut, ending in endings.items()]
    async with sdk_before(bodies) as client:
        told = [[event.type for event in await heard(client)] for _ in CUTS]

    assert told == [
        [data_of(frame)["type"] for frame in CANONICAL[:cut]] + [event.type for event in ending]
        for cut, ending in endings.items()
    ]


async def test_the_sdk_raises_what_a_failed_stream_tells():
    """Its users get an exception with the message and the code."""
    bodies = [b"".join(CANONICAL[:cut]) + b"".join(e.frame for e in after(CANONICAL[:cut]).failed(CUT)) for cut in CUTS]
    async with sdk_before(bodies) as client:
        told = []
        for _ in CUTS:
            with pytest.raises(APIError) as caught:
                await heard(client)
            told.append((caught.value.message, caught.value.code))

    assert told == [(CUT.message, "upstream_cut")] * len(CUTS)


def test_an_error_event_has_both_forms():
    """Some readers want the fields flat, others inside `error`."""
    error, failed = after(CANONICAL[:2]).failed(CUT)

    assert error.data == {
        "type": "error", "sequence_number": 2, "code": "upstream_cut", "message": CUT.message, "param": None,
        "error": {"type": "server_error", "code": "upstream_cut", "message": CUT.message, "param": None},
    }  # fmt: skip
    assert failed.response["error"] == {"code": "server_error", "message": CUT.message}
    assert failed.response["id"] == "resp_0001"


def test_an_open_message_keeps_the_text_that_was_told():
    """Nothing of what the caller has read is taken back, however the stream ends."""
    for done, *_, end in (after(CANONICAL[:11]).stopped("x"), after(CANONICAL[:11]).failed(CUT)):
        assert done.data["item"] == {
            "id": "msg_0001", "type": "message", "status": "incomplete", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hel", "annotations": [], "logprobs": []}],
        }  # fmt: skip
        assert [item["id"] for item in end.response["output"]] == ["rs_0001", "msg_0001"]
        assert end.response["output"][-1] == done.data["item"]


def test_open_items_side_by_side_are_closed_each_as_it_stands():
    """Parallel calls come interleaved; none gets another's arguments, and the output is in their order."""
    sent = stream_of(
        call(0),
        call(1),
        call(2),
        delta("function_call_arguments", "a", 0),
        delta("function_call_arguments", "b", 1),
        delta("function_call_arguments", "A", 0),
        {
            "type": "response.function_call_arguments.done",
            "item_id": "item_1",
            "output_index": 1,
            "name": "f",
            "arguments": "b",
        },
        {
            "type": "response.output_item.done",
            "output_index": 1,
            "item": call(1)["item"] | {"arguments": "b", "status": "completed"},
        },
        delta("function_call_arguments", "c", 2),
    )
    ending = after(sent).stopped("x")

    assert faults(sent, ending) == []
    assert [(item["id"], item["arguments"], item["status"]) for item in ending[-1].response["output"]] == [
        ("item_0", "aA", "incomplete"),
        ("item_1", "b", "completed"),
        ("item_2", "c", "incomplete"),
    ]


def test_items_that_end_in_another_order_stand_in_their_own():
    """The output of a failed response is by output_index, whichever was finished first."""
    sent = stream_of(
        call(0),
        call(1),
        {"type": "response.output_item.done", "output_index": 1, "item": call(1)["item"]},
        {"type": "response.output_item.done", "output_index": 0, "item": call(0)["item"]},
    )

    assert [item["id"] for item in after(sent).failed(CUT)[-1].response["output"]] == ["item_0", "item_1"]


def test_a_refusal_is_kept_as_far_as_it_came():
    """It is no text of the message, but a part of its own kind; finished parts stay whole."""
    note = {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example", "title": "A"}
    whole = {"type": "output_text", "text": "No.", "annotations": [note], "logprobs": []}
    refusal = {"content_index": 1, "part": {"type": "refusal", "refusal": ""}}
    sent = stream_of(
        MESSAGE,
        PART,
        delta("output_text", "No.", content_index=0, logprobs=[]),
        {**PART, "type": "response.content_part.done", "part": whole},
        {**PART, **refusal},
        delta("refusal", "I ", content_index=1),
        delta("refusal", "won't", content_index=1),
    )
    done, _ = after(sent).stopped("x")

    assert done.data["item"]["content"] == [whole, {"type": "refusal", "refusal": "I won't"}]
    assert event_faults(done.data) == []


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
def test_whatever_is_open_keeps_what_was_told(item: JSON, deltas: list[tuple[str, JSON]], kept: JSON):
    """Also of servers that do not announce their parts; of what nobody knows only the item itself is told."""
    told = [delta(kind, text, **more) for kind, more in deltas for text in ("a", "b")]
    done, _ = after(stream_of(added(0, **item), *told)).stopped("x")

    assert done.data["item"] == item | kept | {"status": "incomplete"}


def test_a_stream_ends_by_itself():
    """Then its last event is known, and nothing need follow."""
    progress = after(CANONICAL)

    assert progress.terminal is not None
    assert progress.terminal.type == "response.completed"
    assert after(CANONICAL[:-1]).terminal is None


def test_before_anything_was_sent_an_error_is_still_a_status():
    """Events without a frame send nothing; a comment is enough to begin."""
    progress = Progress()
    progress.see([Event("response.output_item.done", b"", {"item": {}})])

    assert progress.started is False
    assert after([b": hi\n\n"]).started is True
    assert after(CANONICAL[:1]).started is True


def test_numbers_go_on_over_frames_that_have_none():
    """Comments and events without a number do not begin the count again."""
    silent = [b": keep-alive\n\n", b'data: {"type":"acme:beep"}\n\n', b"data: no json\n\n"]

    for unnumbered in (silent, [b"".join(silent)], [CANONICAL[9] + b"".join(silent)], [CANONICAL[9], silent[0]]):
        assert after([*CANONICAL[:9], *unnumbered]).failed(CUT)[0].data["sequence_number"] in (9, 10)
    assert after([*CANONICAL[:10], *silent]).failed(CUT)[0].data["sequence_number"] == 10


@pytest.mark.parametrize("sent", [[], [b": hi\n\n"], [b'data: {"type":"response.created","sequence_number":"7"}\n\n']])
def test_a_stream_without_numbers_is_numbered_from_0(sent: list[bytes]):
    """Old servers have none."""
    assert [event.data["sequence_number"] for event in after(sent).failed(CUT)] == [0, 1]
    assert [event.data["sequence_number"] for event in after(sent).stopped("x")] == [0]


def test_a_response_that_never_began_has_no_more_than_its_end():
    """Whatever reason there was to end it, both ends can be written."""
    assert after([]).failed(CUT)[-1].response == {
        "object": "response", "status": "failed", "output": [], "error": {"code": "server_error", "message": CUT.message},
    }  # fmt: skip
    assert after([]).stopped("x")[-1].response["status"] == "incomplete"


ODD = values.JSON | st.sampled_from(["response.output_item.added", "response.content_part.added", "message"])
EVENTS = st.dictionaries(
    st.sampled_from(["output_index", "content_index", "item", "part", "delta", "sequence_number"]),
    ODD | st.integers(0, 2),
)
KINDS = st.sampled_from([
    "response.created", "response.output_item.added", "response.output_item.done", "response.content_part.added",
    "response.content_part.done", "response.output_text.delta", "response.function_call_arguments.delta", "acme:beep",
])  # fmt: skip


@values.PATIENT
@given(events=st.lists(st.tuples(KINDS, EVENTS), max_size=8))
def test_no_stream_breaks_its_end(events: list[tuple[str, JSON]]):
    """However odd an upstream's events were, ours end them."""
    sent = [frame_of(kind, {"type": kind, **data}) for kind, data in events]
    ends = [after(sent).failed(CUT), after(sent).stopped("x"), after_one_batch(b"".join(sent)).stopped("x")]

    assert [end[-1].type for end in ends] == ["response.failed", "response.incomplete", "response.incomplete"]
    assert all(end[-1].type in TERMINALS and data_of(end[-1].frame) for end in ends)


def test_a_body_is_cut_short_before_the_event_that_was_stopped():
    """Its items up to there, everything else as the upstream told it, and a status that does not lie."""
    whole = data_of(CANONICAL[-1])["response"]
    batch = body_events(orjson.dumps(whole))
    (end,) = stopped_body(batch, batch[:3], "max_tool_calls")

    assert end.type == "response.incomplete"
    assert orjson.loads(end.frame) == end.response == whole | {
        "status": "incomplete", "completed_at": None, "output": whole["output"][:2],
        "incomplete_details": {"reason": "max_tool_calls"},
    }  # fmt: skip
    assert response_faults(end.response | {"incomplete_details": {"reason": "max_output_tokens"}}) == []


def test_an_error_that_the_upstream_told_is_not_told_again():
    """Its own words stand; what is missing behind them is the end."""
    told = {"type": "error", "sequence_number": 2, "code": "server_error", "message": "Overloaded.", "param": None}
    progress = Progress()
    progress.see([Event("", frame) for frame in CANONICAL[:2]])
    progress.see([Event("error", frame_of("error", told))])

    assert [(event.type, event.data["sequence_number"]) for event in progress.failed(CUT)] == [("response.failed", 3)]


def test_what_is_open_when_the_upstream_tells_an_error_is_closed_behind_it():
    """It left its items as they were; numbers go on, and the end has what was told of them."""
    told = {"type": "error", "sequence_number": 11, "code": "server_error", "message": "Overloaded.", "param": None}
    sent = [*CANONICAL[:11], frame_of("error", told)]
    done, end = after(sent).failed(CUT)

    assert faults(sent, [done, end]) == []
    assert [event.type for event in (done, end)] == ["response.output_item.done", "response.failed"]
    assert end.response["output"][-1] == done.data["item"]
