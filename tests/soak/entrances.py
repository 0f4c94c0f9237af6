"""Hostile clients at the entrances: keys and tokens that are made up, questions without end, scrapers without number."""

import asyncio
import base64
from collections.abc import Callable

import orjson

from proxy.identity.key_format import make_key
from tests.soak.gateway import HOSTILE_KEY, ISSUER_PATH
from tests.soak.wire import Client, Target, build_head, repeat

AT_ONCE, ON_ONE_CONNECTION = 8, 50
QUESTIONS_AT_ONCE = 30
QUESTION = build_head(0, method="GET", target="/v1/usage?since=30d&by=hour,model")


async def send_unknown_keys(target: Target) -> None:
    """Send requests with an unknown key."""
    unknown = _with_key("unknown-caller-key")
    await _flood(target, lambda: unknown)


async def send_issued_keys(target: Target) -> None:
    """Send requests with keys that could have been issued."""
    await _flood(target, lambda: _with_key(make_key()))


async def send_forged_tokens(target: Target) -> None:
    """Send tokens with made-up names of keys and many values, of an issuer whose answers never end."""
    numbers = iter(range(10**9))
    claims = {"iss": f"http://127.0.0.1:{target.hostile_port}{ISSUER_PATH}", "values": [{}] * 900 + ["x" * 8_000]}
    payload, signature = _encoded(orjson.dumps(claims)), _encoded(bytes(64))

    def forge() -> bytes:
        header = _encoded(orjson.dumps({"alg": "ES256", "kid": f"made-up-{next(numbers)}"}))
        return _with_key(f"{header}.{payload}.{signature}")

    await _flood(target, forge)


async def ask_for_usage(target: Target) -> None:
    """Ask for the usage of a month, again and again."""

    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            return f"usage {await _exchange(reader, writer, QUESTION)}"
        finally:
            writer.transport.abort()

    await repeat(QUESTIONS_AT_ONCE, ask, target.outcomes)


async def _flood(target: Target, make: Callable[[], bytes]) -> None:
    """Send requests one after the other, 50 on each of a few connections."""

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            for _ in range(ON_ONE_CONNECTION):
                target.outcomes[await _exchange(reader, writer, make())] += 1
            return f"{ON_ONE_CONNECTION} on one connection"
        finally:
            writer.transport.abort()

    await repeat(AT_ONCE, send, target.outcomes)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return head[9:12].decode()


def _with_key(key: str) -> bytes:
    return build_head(2).replace(HOSTILE_KEY.encode(), key.encode()) + b"{}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


ENTRANCES: dict[str, Client] = {
    "unknown_keys": send_unknown_keys,
    "issued_keys": send_issued_keys,
    "forged_tokens": send_forged_tokens,
    "usage": ask_for_usage,
}
