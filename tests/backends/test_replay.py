"""A recording as a backend: a whole gateway without an upstream."""

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest
from openai import AsyncOpenAI

from tests.raw import ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.upstream import CANONICAL, final_body

DATA = Path(__file__).parent.parent / "data"
STREAM = post(b'{"model":"m","stream":true}')


def tables(path: Path, **more: object) -> dict[str, object]:
    backend = {"name": "tape", "use": "replay", "path": str(path)}
    return {"backend": [backend | more], "route": [{"model": "*", "backend": "tape"}]}


@pytest.mark.parametrize("name", ["canonical.sse", "canonical_nodone.sse", "incomplete.sse", "failed_only.sse"])
@pytest.mark.parametrize("pace_ms", [0, 1])
async def test_the_frames_of_the_recording_are_untouched(start_gate, name: str, pace_ms: int):
    """At once or paced; the sentinel occurs once."""
    gate = await start_gate(tables(DATA / name, pace_ms=pace_ms))
    recorded = (DATA / name).read_bytes().removesuffix(b"data: [DONE]\n\n")

    assert (await ask(gate, STREAM)).body == recorded + b"data: [DONE]\n\n"


@pytest.mark.parametrize("pace_ms", [0, 1])
async def test_a_recording_with_crlf_is_untouched(start_gate, tmp_path: Path, pace_ms: int):
    """Its comments as well."""
    tape = tmp_path / "tape.sse"
    recorded = b": a comment\r\n\r\n" + CANONICAL.removesuffix(b"data: [DONE]\n\n").replace(b"\n", b"\r\n")
    tape.write_bytes(recorded)
    gate = await start_gate(tables(tape, pace_ms=pace_ms))

    assert (await ask(gate, STREAM)).body == recorded + b"data: [DONE]\n\n"


async def test_a_json_call_receives_the_final_response(start_gate):
    """As of any stream."""
    gate = await start_gate(tables(DATA / "canonical.sse"))

    assert orjson.loads((await ask(gate, post())).body) == orjson.loads(final_body())


async def test_the_stream_helper_of_the_sdk_reads_a_replay(start_gate):
    """Like the stream that was recorded."""
    gate = await start_gate(tables(DATA / "canonical.sse", pace_ms=1))
    async with (
        AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=0) as client,
        client.responses.stream(model="m", input="Hi") as stream,
    ):
        assert (await stream.get_final_response()).output_text == "Hello."


async def test_a_truncated_recording_ends_as_a_failure(start_gate, tmp_path: Path):
    """No completion is invented."""
    tape = tmp_path / "tape.sse"
    tape.write_bytes(CANONICAL[:3000])
    gate = await start_gate(tables(tape))
    received = events((await ask(gate, STREAM)).body)

    assert [event["type"] for event in received[-3:-1]] == ["error", "response.failed"]
    assert (await ask(gate, post())).status == 502


async def test_an_empty_recording_is_no_answer(start_gate, tmp_path: Path):
    """502 instead of an empty stream."""
    (tmp_path / "tape.sse").write_bytes(b"")
    gate = await start_gate(tables(tmp_path / "tape.sse", pace_ms=1))

    assert {(await ask(gate, data)).status for data in (post(), STREAM)} == {502}


async def test_a_missing_recording_fails_the_start(start_gate, tmp_path: Path):
    """Not each call."""
    with pytest.raises(FileNotFoundError):
        await start_gate(tables(tmp_path / "nowhere.sse"))


async def test_a_client_that_disconnects_ends_only_its_own_replay(start_gate, logged):
    """That of another client continues."""
    gate = await start_gate(tables(DATA / "canonical.sse", pace_ms=5))
    async with aiohttp.ClientSession() as session:
        other = asyncio.create_task(ask(gate, STREAM))
        async with session.post(f"{gate}/v1/responses", json={"model": "m", "stream": True}) as answer:
            await answer.content.readany()
        finished = await other

    await until(lambda: [line["event"] for line in logged].count("request.finished") == 2)
    assert finished.body == CANONICAL
    assert sorted(line["status"] for line in logged if line["event"] == "request.finished") == [200, 499]


async def test_a_replay_lists_no_models_and_is_ready(start_gate):
    """It answers for any name."""
    gate = await start_gate(tables(DATA / "canonical.sse"))
    async with wire(gate) as connection:
        await connection.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        models = await connection.answer()
        await connection.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ready = await connection.answer()

    assert orjson.loads(models.body)["data"] == []
    assert orjson.loads(ready.body)["status"] == "ready"
