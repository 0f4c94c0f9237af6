"""Compressed answers of upstreams; the gateway requests none but decodes them."""

import asyncio
import gzip
import zlib

import pytest

from backends.upstream.decode import STEP_BYTES, Decoder
from tests.raw import RawUpstream, ask, no_tasks_left, playing, post, whole  # noqa: F401
from tests.upstream import CANONICAL, final_body

TEXT = b"".join(b"%07d" % number for number in range(200_000))
PACKED = gzip.compress(TEXT, 1)
JSON, SSE = "Content-Type: application/json", "Content-Type: text/event-stream"


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


CODINGS = {
    "none": ("", bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "GZIP": (" GZIP ", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
}


async def decode(coding: str, data: bytes, size: int = 65_536) -> bytes:
    decoder = Decoder(coding)
    decoded = b"".join([await decoder.decode(data[i : i + size]) for i in range(0, len(data), size)])
    decoder.close()
    return decoded


@pytest.mark.parametrize(("coding", "encode"), CODINGS.values(), ids=CODINGS)
@pytest.mark.parametrize("size", [997, 2**30])
async def test_an_answer_is_decompressed(coding: str, encode, size: int):
    """The chunks may have any size; a large chunk is decompressed in several steps."""
    assert await decode(coding, encode(TEXT), size) == TEXT


@pytest.mark.parametrize("size", [STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 2 * STEP_BYTES])
async def test_an_answer_that_ends_with_a_step_is_complete(size: int):
    assert await decode("gzip", gzip.compress(b"a" * size)) == b"a" * size


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "x"])
def test_other_codings_are_refused(coding: str):
    with pytest.raises(ValueError, match="unsupported content coding"):
        Decoder(coding)


BROKEN = {
    "not gzip": (b"hello", "cannot be decompressed"),
    "truncated": (PACKED[:-9], "a truncated answer"),
    "trailing bytes": (PACKED + b"junk", "bytes after its compressed end"),
    "two members": (PACKED * 2, "bytes after its compressed end"),
    "a bomb": (gzip.compress(b" " * 20_000_000), "more than 200 times its compressed size"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("size", [997, 2**30])
async def test_a_broken_answer_is_an_error(data: bytes, message: str, size: int):
    with pytest.raises(ValueError, match=message):
        await decode("gzip", data, size)


async def test_the_event_loop_runs_between_two_steps():
    """Another task makes progress while one large chunk is decompressed."""
    steps = 0

    async def count() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await decode("gzip", PACKED, 2**30)
    counting.cancel()

    assert steps >= len(TEXT) // STEP_BYTES


@pytest.fixture
async def upstream():
    async with RawUpstream(playing(whole(final_body(), JSON))) as server:
        yield server


def bomb(beginning: bytes) -> bytes:
    """Return 117 KB of gzip that decompress to 120 MB."""
    compressor = zlib.compressobj(wbits=31)
    spaces = b"".join(compressor.compress(b" " * 1_000_000) for _ in range(120))
    return compressor.compress(beginning) + spaces + compressor.flush()


FAULTS = {
    "a bomb as a body": (lambda: bomb(b'{"id":"resp_1","text":"'), JSON),
    "a bomb as a stream": (lambda: bomb(b'data: {"a":"'), SSE),
    "a truncated body": (lambda: gzip.compress(final_body())[:-9], JSON),
    "a truncated stream": (lambda: gzip.compress(CANONICAL)[:200], SSE),
}


@pytest.mark.parametrize(("make_data", "content_type"), FAULTS.values(), ids=FAULTS)
async def test_a_broken_answer_is_a_502(upstream: RawUpstream, start_gateway, make_data, content_type: str):
    """The fault occurs before the first event; the decompressed data is not kept."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1"}
    gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "fake"}]})
    upstream.play = playing(whole(make_data(), content_type, "Content-Encoding: gzip"))
    answers = [await ask(gateway, post(body)) for body in (b'{"model":"m"}', b'{"model":"m","stream":true}')]

    assert [(answer.status, answer.error["code"]) for answer in answers] == [(502, "upstream_invalid_response")] * 2
