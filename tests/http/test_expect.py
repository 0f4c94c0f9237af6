"""Clients that wait for 100 Continue before they send a body."""

import asyncio
from pathlib import Path

import pytest

from tests.http.conftest import LIMIT, of_size
from tests.raw import ask, no_tasks_left, post, wire  # noqa: F401
from tests.upstream import FakeUpstream


async def test_a_client_that_expects_100_continue_receives_it(gateway: str, upstream: FakeUpstream):
    """The client then sends the body and receives the usual answer."""
    body = of_size(500_000)
    async with wire(gateway) as connection:
        await connection.send(post(body, expect="100-continue").removesuffix(body))
        interim = await connection.line() + await connection.line()
        await connection.send(body)
        answer = await connection.answer()

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.status == 200
    assert len(upstream.requests[0].body["input"]) == 500_000 - 24


REFUSED_AT_ONCE = {
    413: post(of_size(LIMIT + 1), expect="100-continue"),
    415: post(expect="100-continue", content_encoding="rot13"),
    404: post(target="/nowhere", expect="100-continue"),
}


@pytest.mark.parametrize(("status", "data"), REFUSED_AT_ONCE.items())
async def test_a_refusal_replaces_100_continue(limited_gateway: str, status: int, data: bytes):
    """The gateway does not request a body that it will not read."""
    async with wire(limited_gateway) as connection:
        await connection.send(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        answer = await connection.answer()

        assert (answer.status, answer.headers["connection"]) == (status, "close")


async def test_a_client_of_http_1_0_receives_no_100_continue(gateway: str):
    """It would read the 100 as its answer (RFC 9110, 10.1.1)."""
    answer = await ask(gateway, post(expect="100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert (answer.version, answer.status) == ("HTTP/1.0", 200)


async def test_curl_sends_a_large_body(gateway: str, upstream: FakeUpstream, tmp_path: Path):
    """curl expects 100 Continue for bodies over a megabyte."""
    (tmp_path / "body.json").write_bytes(of_size(3_000_000))
    try:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", f"{gateway}/v1/responses",
            "-H", "Content-Type: application/json", "-H", "Expect: 100-continue", "--data-binary", "@body.json",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    status, _ = await curl.communicate()

    assert status == b"200"
    assert len(upstream.requests[0].body["input"]) == 3_000_000 - 24
