"""One kept reply: its stored form, and the answers that it becomes."""

from typing import Any

import orjson
import pytest

from proxy.cache.entry import ECHOED, Entry, echoed_fields
from proxy.wire.event import FOLLOWED
from tests.examples import make_call
from tests.rules.samples import RESPONSE, sent
from tests.wire.streams import CANONICAL, events_in, frame

FIRST = {"metadata": {"who": "first"}, "safety_identifier": "first", "user": "first"}
FRAMES = b"".join(CANONICAL).decode()


def entry_of(**changes: Any) -> dict[str, Any]:
    """Return the stored form of an entry as an object, with some fields changed."""
    entry = {
        "key": "k", "stored_at": 5.0, "echoed": dict(FIRST), "headers": {"x-headgate-ignored": "seed"}, "frames": FRAMES,
        "response": RESPONSE,
    }  # fmt: skip
    return entry | changes


def decoded(**changes: Any) -> Entry:
    entry = Entry.decode(orjson.dumps(entry_of(**changes)), "k")
    assert entry is not None
    return entry


async def frames_for(entry: Entry, **fields: Any) -> bytes:
    """Return the stream that a call with these fields gets."""
    reply = entry.reply(make_call(stream=True, **fields), FOLLOWED)
    assert reply is not None
    return await sent(reply)


def body_for(entry: Entry, **fields: Any) -> Any:
    """Return the object that a call with these fields gets."""
    reply = entry.reply(make_call(**fields), FOLLOWED)
    assert reply is not None
    assert orjson.loads(reply.body or b"") == reply.response
    return reply.response


def test_an_entry_survives_its_encoding():
    """Under its own key only: a store that mixes up two values causes a miss."""
    entry = decoded()

    assert Entry.decode(entry.encode("k"), "k") == entry
    assert Entry.decode(entry.encode("k"), "other") is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"{}",
        b'["key"]',
        b"[" * 2000,
        orjson.dumps({"key": "k"}),
        *[orjson.dumps({name: value for name, value in entry_of().items() if name != left_out}) for left_out in entry_of()],
        *[
            orjson.dumps(entry_of(**changes))
            for changes in (
                {"key": None},
                {"key": ["k"]},
                {"unknown": 1},
                {"stored_at": None},
                {"stored_at": "5"},
                {"stored_at": True},
                {"stored_at": [5]},
                {"echoed": None},
                {"echoed": []},
                {"headers": None},
                {"headers": ["x-headgate-a"]},
                {"headers": {"x-headgate-a": 3}},
                {"headers": {"x-headgate-a": "b\r\nSet-Cookie: c"}},
                {"headers": {"x-headgate-a\n": "b"}},
                {"headers": {"Content-Length": "3"}},
                {"frames": 3},
                {"frames": ["a"]},
                {"frames": {}},
                {"response": None},
                {"response": []},
                {"response": "text"},
                {"response": {}},
                {"response": {"status": "failed"}},
            )
        ],
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_no_entry(value: bytes):
    """A store may return what another program, or another version, has written."""
    assert Entry.decode(value, "k") is None


@pytest.mark.parametrize("frames", ["", "text", ": hi\n\n", "data: [DONE]\n\n", FRAMES[:4000], "data: {}\n\n"])
def test_frames_without_a_completed_response_are_no_answer(frames: str):
    """A call for a body still has the response object."""
    entry = decoded(frames=frames)

    assert entry.reply(make_call(stream=True), FOLLOWED) is None
    assert body_for(entry, **FIRST) == RESPONSE


def test_a_response_that_cannot_be_encoded_again_is_no_answer():
    """JSON may be parsed deeper than it may be written."""
    value = orjson.dumps(entry_of(frames=None)).replace(
        b'"output":[', b'"deep":' + b"[" * 300 + b"]" * 300 + b',"output":['
    )
    entry = Entry.decode(value, "k")
    frames = frame(type="response.created", response={"user": "u"}).replace(
        b'"u"', b'"u","deep":' + b"[" * 300 + b"]" * 300
    )
    stream = decoded(frames=(frames + frame(type="response.completed", response=RESPONSE)).decode())

    assert entry is not None
    assert entry.reply(make_call(), FOLLOWED) is None
    assert stream.reply(make_call(stream=True, user="second"), FOLLOWED) is None
    assert stream.reply(make_call(stream=True, **FIRST), FOLLOWED) is not None


async def test_a_stream_is_answered_with_the_kept_frames():
    """Byte for byte, when the echoed fields are the same."""
    assert await frames_for(decoded(), **FIRST) == FRAMES.encode()
    assert body_for(decoded(), **FIRST) == RESPONSE


def test_an_entry_of_a_body_answers_a_stream_with_a_body():
    """The path converts it."""
    reply = decoded(frames=None).reply(make_call(stream=True), FOLLOWED)

    assert reply is not None
    assert (reply.batches, reply.headers) == (None, {"x-headgate-ignored": "seed"})


@pytest.mark.parametrize("name", ECHOED)
async def test_each_echoed_field_is_the_one_of_the_answered_call(name: str):
    """In a body and in every lifecycle event; the other fields and events are as kept."""
    own = FIRST | {name: {"who": "second"} if name == "metadata" else "second"}
    kept = RESPONSE | FIRST
    frames = FRAMES.encode()
    for event in events_in(frames):
        if "response" in event:
            changed = event | {"response": event["response"] | FIRST}
            frames = frames.replace(orjson.dumps(event), orjson.dumps(changed))
    entry = decoded(response=kept, frames=frames.decode())
    events = events_in(await frames_for(entry, **own))

    assert body_for(entry, **own) == RESPONSE | own
    assert [event["response"][name] for event in events if "response" in event] == [own[name]] * 3
    assert events == [
        event | {"response": event["response"] | own} if "response" in event else event for event in events_in(frames)
    ]


async def test_metadata_that_a_call_leaves_out_is_empty():
    """As OpenAI answers it; the other fields are null."""
    entry = decoded(
        response=RESPONSE | FIRST, frames=frame(type="response.completed", response=RESPONSE | FIRST).decode()
    )
    expected = {"metadata": {}, "safety_identifier": None, "user": None}

    assert body_for(entry) == RESPONSE | expected
    assert events_in(await frames_for(entry))[0]["response"] == RESPONSE | expected


async def test_only_fields_that_the_response_has_are_replaced():
    """A server that echoes none gets none added; one that echoes a field only at the beginning has it replaced there."""
    created = frame(type="response.created", response={"id": "r", "user": "first"})
    entry = decoded(
        response={"status": "completed", "id": "r"},
        frames=(created + frame(type="response.completed", response={"id": "r"})).decode(),
    )
    events = events_in(await frames_for(entry, user="second"))

    assert body_for(entry, user="second") == {"status": "completed", "id": "r"}
    assert [event["response"] for event in events] == [{"id": "r", "user": "second"}, {"id": "r"}]


def test_the_echoed_fields_are_those_of_the_request():
    """Null where the request leaves them out."""
    assert echoed_fields(make_call(user="u", metadata={"a": "b"}, input="Hi")) == {
        "metadata": {"a": "b"}, "safety_identifier": None, "user": "u",
    }  # fmt: skip
