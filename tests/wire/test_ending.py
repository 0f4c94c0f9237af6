"""Streams that end early, cut after each of their events: the events that close them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIError

from proxy.wire.body_events import events_of_body
from proxy.wire.ending import failure_events, incomplete_events, incomplete_response, refusal_of
from proxy.wire.errors import BackendError
from proxy.wire.event import TERMINALS, Event, Reply, Run
from proxy.wire.items import JSON
from proxy.wire.transcript import Transcript
from tests import examples
from tests.wire.contract import event_faults, frames_faults, order_faults, read_with_sdk, response_faults, sdk_client
from tests.wire.streams import (
    CANONICAL,
    PARALLEL_CALLS,
    added,
    data_of,
    delta,
    done,
    frame,
    function_call,
    stream_of,
    transcript_of,
    transcript_of_one_read,
)

CUT = BackendError("The upstream's stream ended before the response did.", code="upstream_cut")
UPSTREAM_ERROR = {"type": "error", "code": "server_error", "message": "Overloaded.", "param": None}
# After each of the canonical events but the last.
CUTS = range(1, len(CANONICAL))


def failed(frames: Sequence[bytes]) -> list[Event]:
    return failure_events(transcript_of(frames), CUT)


def stopped(frames: Sequence[bytes], reason: str = "max_tool_calls") -> list[Event]:
    return incomplete_events(transcript_of(frames), reason)


def whole_stream(frames: Sequence[bytes], ending: Sequence[Event]) -> bytes:
    return b"".join(frames) + b"".join(event.sse for event in ending)


def faults(sent: Sequence[bytes], ending: Sequence[Event]) -> list[str]:
    """Return what is wrong with a stream that was ended so."""
    events = [data_of(frame) for frame in sent] + [dict(event.data) for event in ending]
    wrong = [fault for event in ending for fault in event_faults(_with_known_reason(event.data))]
    return order_faults(events, cut=True) + frames_faults(ending) + wrong


def _with_known_reason(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The reason of a stop is a policy's name, which is not among the values of OpenAI's types: our only extension."""
    if data["type"] != "response.incomplete":
        return data
    return data | {"response": data["response"] | {"incomplete_details": {"reason": "max_output_tokens"}}}


@pytest.mark.parametrize("cut", CUTS)
def test_a_failure_after_any_event(cut: int):
    """Open items are closed as a stop closes them, then come the error and one terminal event."""
    ending = failed(CANONICAL[:cut])
    *closed, terminal = stopped(CANONICAL[:cut])

    assert faults(CANONICAL[:cut], ending) == []
    assert [event.type for event in ending[-2:]] == ["error", "response.failed"]
    assert [event.sse for event in ending[:-2]] == [event.sse for event in closed]
    assert ending[-1].response["output"] == terminal.response["output"]
    assert [event.data["sequence_number"] for event in ending] == list(range(cut, cut + len(ending)))


@pytest.mark.parametrize("cut", CUTS)
def test_a_stop_after_any_event(cut: int):
    """Open items are closed as incomplete, and the response is incomplete for the given reason."""
    ending = stopped(CANONICAL[:cut])

    assert faults(CANONICAL[:cut], ending) == []
    assert ending[-1].type == "response.incomplete"
    assert ending[-1].response["incomplete_details"] == {"reason": "max_tool_calls"}
    assert ending[-1].response["usage"] is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_ending_does_not_depend_on_reads_and_line_ends(cut: int, end: bytes):
    """One frame at a time or all in one read, in any line ends: the same events."""
    sent = b"".join(CANONICAL[:cut]).replace(b"\n", end) + b": x\n\n"
    at_once = [incomplete_events(transcript_of_one_read(sent), "x"), failure_events(transcript_of_one_read(sent), CUT)]
    one_by_one = [stopped(CANONICAL[:cut], "x"), failed(CANONICAL[:cut])]

    assert [[event.sse for event in ending] for ending in at_once] == [
        [event.sse for event in ending] for ending in one_by_one
    ]


async def test_the_sdk_accepts_every_stopped_stream():
    """Its helper yields the closing events as if the model had ended there."""
    endings = {cut: stopped(CANONICAL[:cut]) for cut in CUTS}
    async with sdk_client([whole_stream(CANONICAL[:cut], ending) for cut, ending in endings.items()]) as client:
        types = [[event.type for event in await read_with_sdk(client)] for _ in CUTS]

    assert types == [
        [data_of(frame)["type"] for frame in CANONICAL[:cut]] + [event.type for event in ending]
        for cut, ending in endings.items()
    ]


async def test_the_sdk_raises_the_error_of_a_failed_stream():
    """Its users get an exception with the message and the code."""
    streams = [whole_stream(CANONICAL[:cut], failed(CANONICAL[:cut])) for cut in CUTS]
    async with sdk_client(streams) as client:
        raised = []
        for _ in CUTS:
            with pytest.raises(APIError) as caught:
                await read_with_sdk(client)
            raised.append((caught.value.message, caught.value.code))

    assert raised == [(CUT.message, "upstream_cut")] * len(CUTS)


REFUSED = "The upstream refused the request with the status 429."


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b'{"error":{"message":"Slow.","code":"rate"}}', {"Retry-After": "7"}, ("Slow.", "rate", "7")),
        (b'{"error":{"message":"Slow.","code":7}}', {}, ("Slow.", "upstream_error", "1")),
        (b'{"error":{"message":"Slow."}}', {"retry-after": "2"}, ("Slow.", "upstream_error", "2")),
        *((body, {}, (REFUSED, "upstream_error", "1")) for body in (b"", b"<html>", b"[]", b'{"error":"Slow."}')),
    ],
)
def test_a_refusal_after_the_beginning_of_an_answer_is_an_error(
    body: bytes, headers: dict[str, str], expected: tuple[str, str, str]
):
    """It has the words of the upstream, if these can be found."""
    refusal = refusal_of(Reply(429, headers, body=body))

    kept = refusal_of(Reply(429, headers, body=b'{"error":{"message":"x","type":"requests","param":"input"}}'))

    assert (refusal.message, refusal.code, refusal.headers["Retry-After"]) == expected
    assert (refusal.status, refusal.type, refusal.param) == (429, "server_error", None)
    assert (kept.type, kept.param) == ("requests", "input")


def test_an_error_event_has_both_forms():
    """Some clients read the fields at the top level, others inside `error`."""
    error, terminal = failed(CANONICAL[:2])

    assert error.data == {
        "type": "error", "sequence_number": 2, "code": "upstream_cut", "message": CUT.message, "param": None,
        "error": {"type": "server_error", "code": "upstream_cut", "message": CUT.message, "param": None},
    }  # fmt: skip
    assert terminal.response["error"] == {"code": "server_error", "message": CUT.message}
    assert terminal.response["id"] == "resp_0001"


def test_an_open_item_is_closed_with_the_text_that_was_sent():
    """The output of the terminal event repeats it, however the stream ends."""
    for item_done, *_, terminal in (stopped(CANONICAL[:11]), failed(CANONICAL[:11])):
        assert item_done.data["item"]["content"][0]["text"] == "Hel"
        assert item_done.data["output_index"] == 1
        assert [item["id"] for item in terminal.response["output"]] == ["rs_0001", "msg_0001"]
        assert terminal.response["output"][-1] == item_done.data["item"]


def test_parallel_items_are_closed_each_with_its_own_text():
    """The output is in the order of the items, finished or not."""
    ending = stopped(PARALLEL_CALLS)

    assert faults(PARALLEL_CALLS, ending) == []
    assert [(item["id"], item["arguments"], item["status"]) for item in ending[-1].response["output"]] == [
        ("item_0", "aA", "incomplete"),
        ("item_1", "b", "completed"),
        ("item_2", "c", "incomplete"),
    ]


def test_the_output_of_a_failed_response_is_in_the_order_of_its_items():
    """Whichever was finished first."""
    calls = [function_call(0), function_call(1)]
    sent = stream_of(added(0, **calls[0]), added(1, **calls[1]), done(1, **calls[1]), done(0, **calls[0]))

    assert [item["id"] for item in failed(sent)[-1].response["output"]] == ["item_0", "item_1"]


def test_a_refusal_is_closed_in_a_valid_event():
    """The text before it is a finished part of the same message."""
    part = {"item_id": "item_0", "output_index": 0, "content_index": 0}
    text = {"type": "output_text", "text": "No.", "annotations": [], "logprobs": []}
    sent = stream_of(
        added(0, id="item_0", type="message", status="in_progress", role="assistant", content=[]),
        {"type": "response.content_part.done", **part, "part": text},
        {"type": "response.content_part.added", **part, "content_index": 1, "part": {"type": "refusal", "refusal": ""}},
        delta("refusal", "I won't", content_index=1),
    )
    item_done, _ = stopped(sent)

    assert item_done.data["item"]["content"] == [text, {"type": "refusal", "refusal": "I won't"}]
    assert event_faults(item_done.data) == []


@pytest.mark.parametrize("sent", [[], [b": hi\n\n"], [b'data: {"type":"response.created","sequence_number":"7"}\n\n']])
def test_a_stream_without_numbers_is_numbered_from_0(sent: list[bytes]):
    """Old servers have none."""
    assert [event.data["sequence_number"] for event in failed(sent)] == [0, 1]
    assert [event.data["sequence_number"] for event in stopped(sent)] == [0]


def test_a_response_that_never_began_has_only_its_end():
    """Both endings can be composed without `response.created`."""
    assert failed([])[-1].response == {
        "object": "response", "status": "failed", "output": [], "error": {"code": "server_error", "message": CUT.message},
    }  # fmt: skip
    assert stopped([])[-1].response["status"] == "incomplete"


def test_the_ending_is_recorded_in_the_transcript():
    """The cache, the log and the conversion to a body read the final response there."""
    transcript = transcript_of(CANONICAL[:11])
    *_, terminal = incomplete_events(transcript, "x")

    assert transcript.terminal is terminal
    assert transcript.items == transcript.response["output"] == terminal.response["output"]
    assert transcript.cut_open_items() == []


def test_an_error_of_the_upstream_is_not_repeated():
    """Its own words stay; only the terminal event is added."""
    transcript = Transcript()
    transcript.add([Run(frame) for frame in CANONICAL[:2]])
    transcript.add([Event("error", data=UPSTREAM_ERROR | {"sequence_number": 2})])
    ending = failure_events(transcript, CUT)

    assert [(event.type, event.data["sequence_number"]) for event in ending] == [("response.failed", 3)]


def test_items_that_are_open_at_an_error_of_the_upstream_are_closed_after_it():
    """The numbers continue, and the terminal event has the item."""
    sent = [*CANONICAL[:11], frame(**UPSTREAM_ERROR, sequence_number=11)]
    item_done, terminal = failed(sent)

    assert faults(sent, [item_done, terminal]) == []
    assert [event.type for event in (item_done, terminal)] == ["response.output_item.done", "response.failed"]
    assert terminal.response["output"][-1] == item_done.data["item"]


@pytest.mark.parametrize("levels", [100, *range(249, 256), 900])
def test_what_is_nested_too_deeply_to_be_sent_is_left_out_of_the_end(levels: int):
    """The end of a stream is always sent; of a response, a finished item and an open item only the deep ones lack."""
    value = b"[" * levels + b"]" * levels
    sent = [
        b'data: {"type":"response.created","response":{"id":"resp_1","deep":%b}}\n\n' % value,
        b'data: {"type":"response.output_item.done","output_index":0,"item":{"id":"a","deep":%b}}\n\n' % value,
        frame(**done(1, id="b")),
        b'data: {"type":"response.output_item.added","output_index":2,"item":{"id":"c","deep":%b}}\n\n' % value,
        frame(**added(3, id="d")),
    ]
    ending = [data_of(event.sse) for event in stopped(sent)]
    *closed, terminal = ending
    is_sent = levels <= 250

    assert [event["item"]["id"] for event in closed] == (["c", "d"] if is_sent else ["d"])
    assert [item["id"] for item in terminal["response"]["output"]] == (list("abcd") if is_sent else ["b", "d"])
    assert ("deep" in terminal["response"]) == is_sent


def test_a_body_is_cut_before_the_event_at_which_it_was_stopped():
    """It keeps the items before that and all other fields, with a status and no completion time."""
    response = data_of(CANONICAL[-1])["response"]
    transcript = Transcript()
    transcript.add(events_of_body(response)[:3])
    cut = incomplete_response(response, transcript, "max_tool_calls")

    assert cut == response | {
        "status": "incomplete", "completed_at": None, "output": response["output"][:2],
        "incomplete_details": {"reason": "max_tool_calls"},
    }  # fmt: skip
    assert response_faults(cut | {"incomplete_details": {"reason": "max_output_tokens"}}) == []


ODD = examples.JSON | st.sampled_from(["response.output_item.added", "response.content_part.added", "message"])
FIELDS = st.dictionaries(
    st.sampled_from(["output_index", "content_index", "item", "part", "delta", "sequence_number"]),
    ODD | st.integers(0, 2),
)
KINDS = st.sampled_from([
    "response.created", "response.output_item.added", "response.output_item.done", "response.content_part.added",
    "response.content_part.done", "response.output_text.delta", "response.function_call_arguments.delta", "acme:beep",
])  # fmt: skip


@examples.NO_DEADLINE
@given(events=st.lists(st.tuples(KINDS, FIELDS), max_size=8))
def test_any_stream_can_be_ended(events: list[tuple[str, JSON]]):
    """Whatever the fields of an upstream's events are, both endings are composed."""
    sent = [frame(**{**data, "type": kind}) for kind, data in events]
    endings = [failed(sent), stopped(sent), incomplete_events(transcript_of_one_read(b"".join(sent)), "x")]

    assert [ending[-1].type for ending in endings] == ["response.failed", "response.incomplete", "response.incomplete"]
    assert all(ending[-1].type in TERMINALS and data_of(ending[-1].sse) for ending in endings)
