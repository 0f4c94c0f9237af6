"""A recording as a backend: a whole gateway without an upstream."""

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.raw import ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.sdk import connect_sdk
from tests.upstream import CANONICAL, final_body

DATA = Path(__file__).parent.parent / "data"
STREAM = post(b'{"model":"m","stream":true}')


def tables(path: Path, **more: object) -> dict[str, object]:
    backend = {"name": "recording", "use": "replay", "path": str(path)}
    return {"backend": [backend | more], "route": [{"model": "*", "backend": "recording"}]}


@pytest.mark.parametrize("name", ["canonical.sse", "canonical_nodone.sse", "incomplete.sse", "failed_only.sse"])
@pytest.mark.parametrize("pace_ms", [0, 1])
async def test_the_frames_of_the_recording_are_untouched(start_gateway, name: str, pace_ms: int):
    """The stream equals the recording, paced or not, and ends with one sentinel."""
    gateway = await start_gateway(tables(DATA / name, pace_ms=pace_ms))
    recorded = (DATA / name).read_bytes().removesuffix(b"data: [DONE]\n\n")

    assert (await ask(gateway, STREAM)).body == recorded + b"data: [DONE]\n\n"


@pytest.mark.parametrize("pace_ms", [0, 1])
async def test_a_recording_with_crlf_is_untouched(start_gateway, tmp_path: Path, pace_ms: int):
    """Its comments are sent as they were recorded."""
    recording = tmp_path / "recording.sse"
    recorded = b": a comment\r\n\r\n" + CANONICAL.removesuffix(b"data: [DONE]\n\n").replace(b"\n", b"\r\n")
    recording.write_bytes(recorded)
    gateway = await start_gateway(tables(recording, pace_ms=pace_ms))

    assert (await ask(gateway, STREAM)).body == recorded + b"data: [DONE]\n\n"


async def test_a_json_call_receives_the_final_response(start_gateway):
    """The recorded stream is collected into one body."""
    gateway = await start_gateway(tables(DATA / "canonical.sse"))

    assert orjson.loads((await ask(gateway, post())).body) == orjson.loads(final_body())


async def test_the_stream_helper_of_the_sdk_reads_a_replay(start_gateway):
    """It accepts the replay as it accepted the recorded stream."""
    gateway = await start_gateway(tables(DATA / "canonical.sse", pace_ms=1))
    async with (
        connect_sdk(gateway, "x") as client,
        client.responses.stream(model="m", input="Hi") as stream,
    ):
        assert (await stream.get_final_response()).output_text == "Hello."


async def test_a_truncated_recording_ends_as_a_failure(start_gateway, tmp_path: Path):
    """The stream ends with `response.failed`; the body is a 502."""
    recording = tmp_path / "recording.sse"
    recording.write_bytes(CANONICAL[:3000])
    gateway = await start_gateway(tables(recording))
    received = events((await ask(gateway, STREAM)).body)

    assert [event["type"] for event in received[-3:-1]] == ["error", "response.failed"]
    assert (await ask(gateway, post())).status == 502


async def test_an_empty_recording_is_a_502(start_gateway, tmp_path: Path):
    """An empty stream would look like an answer."""
    (tmp_path / "recording.sse").write_bytes(b"")
    gateway = await start_gateway(tables(tmp_path / "recording.sse", pace_ms=1))

    assert {(await ask(gateway, data)).status for data in (post(), STREAM)} == {502}


async def test_a_missing_recording_fails_the_start(start_gateway, tmp_path: Path):
    """The error is raised at the start, not at each call."""
    with pytest.raises(FileNotFoundError):
        await start_gateway(tables(tmp_path / "nowhere.sse"))


async def test_a_client_that_disconnects_ends_only_its_own_replay(start_gateway, logged):
    """The replay of another client continues."""
    gateway = await start_gateway(tables(DATA / "canonical.sse", pace_ms=5))
    async with aiohttp.ClientSession() as session:
        other = asyncio.create_task(ask(gateway, STREAM))
        async with session.post(f"{gateway}/v1/responses", json={"model": "m", "stream": True}) as answer:
            await answer.content.readany()
        finished = await other

    await until(lambda: [line["event"] for line in logged].count("request.finished") == 2)
    assert finished.body == CANONICAL
    assert sorted(line["status"] for line in logged if line["event"] == "request.finished") == [200, 499]


async def test_a_replay_lists_no_models_and_is_ready(start_gateway):
    """It answers calls for any model, so it has no list of names."""
    gateway = await start_gateway(tables(DATA / "canonical.sse"))
    async with wire(gateway) as connection:
        await connection.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        models = await connection.answer()
        await connection.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ready = await connection.answer()

    assert orjson.loads(models.body)["data"] == []
    assert orjson.loads(ready.body)["status"] == "ready"
