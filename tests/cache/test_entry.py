"""One kept reply: its stored form, and the answers that it becomes."""

import asyncio
import zlib
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.entry import COMPRESS_BYTES, COMPRESSED, ECHOED, LENGTHS, PLAIN, Entry, echoed_fields, zstd
from proxy.wire.event import FOLLOWED
from tests.examples import NO_DEADLINE, make_call
from tests.rules.samples import RESPONSE, sent
from tests.wire.streams import CANONICAL, events_in, frame

FIRST = {"metadata": {"who": "first"}, "safety_identifier": "first", "user": "first"}
FRAMES = b"".join(CANONICAL)
FACTS = {
    "stored_at": 5.0, "echoed": dict(FIRST), "headers": {"x-headgate-ignored": "seed"}, "labels": {"team": "search"},
}  # fmt: skip


def stored(
    facts: Any = FACTS, body: bytes = orjson.dumps(RESPONSE), frames: bytes = FRAMES, flags: int = PLAIN
) -> bytes:
    """Return the stored form of an entry with these parts."""
    text = facts if isinstance(facts, bytes) else orjson.dumps(facts)
    return LENGTHS.pack(flags, len(text), len(body)) + text + body + frames


def decoded(response: Any = RESPONSE, frames: bytes = FRAMES, **facts: Any) -> Entry:
    entry = Entry.decode(stored(FACTS | facts, orjson.dumps(response), frames))
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
    """Byte for byte, in one value."""
    entry = decoded()

    assert Entry.decode(entry.encode()) == entry
    assert entry.encode() == stored()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"[" * 2000,
        stored()[:8],
        stored(flags=PLAIN + 100),
        stored(b"null"),
        stored(b"[]"),
        stored(b"{"),
        LENGTHS.pack(PLAIN, 2, 2**32 - 1) + b"{}",
        LENGTHS.pack(PLAIN, 2**32 - 1, 0) + b"{}",
        *[stored({name: value for name, value in FACTS.items() if name != left_out}) for left_out in FACTS if left_out != "labels"],
        *[
            stored(FACTS | changes)
            for changes in (
                {"unknown": 1},
                {"body": "x"},
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
                {"marks": 3},
                {"marks": [3]},
                {"marks": [[1.0, -1]]},
                {"marks": [[-1.0, 1]]},
                {"marks": [["a", 1]]},
                {"marks": [[1.0, 1, 1]]},
                {"labels": []},
                {"labels": {"team": 3}},
            )
        ],
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_no_entry(value: bytes):
    """A store may return what another program, or another version, has written."""
    assert Entry.decode(value) is None


def test_a_long_entry_is_compressed():
    """Body and frames together, to a fraction."""
    entry = replace(decoded(), body=orjson.dumps(RESPONSE | {"text": "a" * COMPRESS_BYTES}))
    encoded = entry.encode()

    assert Entry.decode(encoded) == entry
    assert len(encoded) < COMPRESS_BYTES / 4


def test_what_cannot_be_decompressed_is_no_entry(monkeypatch: pytest.MonkeyPatch):
    """Nor what is larger than an entry may be."""
    content = zstd.compress(orjson.dumps(RESPONSE))
    facts = orjson.dumps(FACTS)
    head = LENGTHS.pack(COMPRESSED, len(facts), 3) + facts

    assert Entry.decode(head + content) is not None
    assert Entry.decode(head + content[:-1]) is None
    assert Entry.decode(head + b"x" + content) is None
    assert Entry.decode(head + zlib.compress(orjson.dumps(RESPONSE))) is None  # as earlier versions compressed it
    monkeypatch.setattr("proxy.cache.entry.MAX_BYTES", 100)
    assert Entry.decode(head + content) is None


async def test_a_paced_stream_has_its_batches_in_time():
    """Each at its moment, whatever the marks are."""
    ends = [len(FRAMES) // 3, len(FRAMES) // 2, len(FRAMES) // 2, len(FRAMES) + 7]
    entry = decoded(marks=[[0.0, ends[0]], [0.01, ends[1]], [0.02, ends[2]], [0.03, ends[3]]])
    reply = entry.reply(make_call(stream=True, **FIRST), FOLLOWED, paced=True)
    assert reply is not None
    assert reply.batches is not None
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = [(loop.time() - started, b"".join([unit.sse for unit in batch])) async for batch in reply.batches]

    assert b"".join([frames for _, frames in found]) == FRAMES
    assert [found[0][0] >= 0, found[1][0] >= 0.01, found[-1][0] >= 0.03] == [True] * 3
    assert await frames_for(entry, **FIRST) == FRAMES


@NO_DEADLINE
@given(st.binary(max_size=40), st.integers(0, len(stored())))
def test_random_bytes_are_no_entry(noise: bytes, at: int):
    """Nothing is raised for what someone else has put there."""
    entry = Entry.decode(stored()[:at] + noise)
    if entry is not None:
        entry.reply(make_call(), FOLLOWED)
        entry.reply(make_call(stream=True), FOLLOWED)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"3", b"{}", b'{"status":"failed"}'])
def test_a_body_without_a_completed_response_is_no_answer(body: bytes):
    """Whatever was stored."""
    entry = Entry.decode(stored(body=body, frames=b""))

    assert entry is not None
    assert entry.reply(make_call(), FOLLOWED) is None
    assert entry.reply(make_call(stream=True), FOLLOWED) is None


@pytest.mark.parametrize("frames", [b"text", b": hi\n\n", b"data: [DONE]\n\n", FRAMES[:4000], b"data: {}\n\n"])
def test_frames_without_a_completed_response_are_no_answer(frames: bytes):
    """A call for a body still has the response object."""
    entry = decoded(frames=frames)

    assert entry.reply(make_call(stream=True), FOLLOWED) is None
    assert body_for(entry, **FIRST) == RESPONSE


def test_a_response_that_cannot_be_encoded_again_is_no_answer():
    """JSON may be parsed deeper than it may be written."""
    deep = b"[" * 300 + b"]" * 300
    body = orjson.dumps(RESPONSE).replace(b'"output":[', b'"deep":' + deep + b',"output":[')
    entry = Entry.decode(stored(body=body, frames=b""))
    frames = frame(type="response.created", response={"user": "u"}).replace(b'"u"', b'"u","deep":' + deep)
    stream = decoded(frames=frames + frame(type="response.completed", response=RESPONSE))

    assert entry is not None
    assert entry.reply(make_call(), FOLLOWED) is None
    assert entry.reply(make_call(**FIRST), FOLLOWED) is not None
    assert stream.reply(make_call(stream=True, user="second"), FOLLOWED) is None
    assert stream.reply(make_call(stream=True, **FIRST), FOLLOWED) is not None


async def test_a_stream_is_answered_with_the_kept_frames():
    """Byte for byte, when the echoed fields are the same."""
    assert await frames_for(decoded(), **FIRST) == FRAMES
    assert body_for(decoded(), **FIRST) == RESPONSE


def test_an_entry_of_a_body_answers_a_stream_with_a_body():
    """The path converts it."""
    reply = decoded(frames=b"").reply(make_call(stream=True), FOLLOWED)

    assert reply is not None
    assert (reply.batches, reply.headers) == (None, {"x-headgate-ignored": "seed"})


@pytest.mark.parametrize("name", ECHOED)
async def test_each_echoed_field_is_the_one_of_the_answered_call(name: str):
    """In a body and in every lifecycle event; the other fields and events are as kept."""
    own = FIRST | {name: {"who": "second"} if name == "metadata" else "second"}
    kept = RESPONSE | FIRST
    frames = FRAMES
    for event in events_in(frames):
        if "response" in event:
            changed = event | {"response": event["response"] | FIRST}
            frames = frames.replace(orjson.dumps(event), orjson.dumps(changed))
    entry = decoded(response=kept, frames=frames)
    events = events_in(await frames_for(entry, **own))

    assert body_for(entry, **own) == RESPONSE | own
    assert [event["response"][name] for event in events if "response" in event] == [own[name]] * 3
    assert events == [
        event | {"response": event["response"] | own} if "response" in event else event for event in events_in(frames)
    ]


async def test_metadata_that_a_call_leaves_out_is_empty():
    """As OpenAI answers it; the other fields are null."""
    entry = decoded(response=RESPONSE | FIRST, frames=frame(type="response.completed", response=RESPONSE | FIRST))
    expected = {"metadata": {}, "safety_identifier": None, "user": None}

    assert body_for(entry) == RESPONSE | expected
    assert events_in(await frames_for(entry))[0]["response"] == RESPONSE | expected


async def test_only_fields_that_the_response_has_are_replaced():
    """A server that echoes none gets none added; one that echoes a field only at the beginning has it replaced there."""
    created = frame(type="response.created", response={"id": "r", "user": "first"})
    entry = decoded(
        response={"status": "completed", "id": "r"},
        frames=created + frame(type="response.completed", response={"id": "r"}),
    )
    events = events_in(await frames_for(entry, user="second"))

    assert body_for(entry, user="second") == {"status": "completed", "id": "r"}
    assert [event["response"] for event in events] == [{"id": "r", "user": "second"}, {"id": "r"}]


def test_the_body_of_one_caller_is_not_given_to_another():
    """The first one's is made once, and kept; a call with other fields gets its own."""
    entry, first, own = decoded(), make_call(**FIRST), FIRST | {"user": "second"}
    bodies = [entry.reply(first, FOLLOWED) for _ in range(2)]

    assert bodies[0] is bodies[1]
    assert bodies[0] is not None
    assert bodies[0].response == RESPONSE
    assert body_for(entry, **own) == RESPONSE | own


def test_the_echoed_fields_are_those_of_the_request():
    """Null where the request leaves them out."""
    assert echoed_fields(make_call(user="u", metadata={"a": "b"}, input="Hi")) == {
        "metadata": {"a": "b"}, "safety_identifier": None, "user": "u",
    }  # fmt: skip
