"""A gateway with operators of each role, for tests of the admin API and the console."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.conftest import tables_for
from tests.metrics import admin_of
from tests.upstream import FakeUpstream

KEYS = {
    "owner": "owner-key-0123456789-0123456789-0123",
    "search_admin": "search-admin-key-0123456789-0123456789",
    "viewer": "viewer-key-0123456789-0123456789-0123",
    "search_viewer": "search-viewer-key-0123456789-0123456789",
}
OPERATORS = {
    "owner": {"role": "owner"},
    "search_admin": {"role": "team_admin", "team": "search"},
    "viewer": {"role": "viewer"},
    "search_viewer": {"role": "viewer", "team": "search"},
}
CALLERS = {"ada": "search", "ben": "search", "cleo": "billing"}


class Console:
    """A gateway, the address of its admin listener, and a client for both."""

    def __init__(self, gateway: str, admin: str, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.admin = admin
        self.http = http

    async def call(self, caller: str = "ada", **fields: Any) -> tuple[int, str]:
        """Make a call of a caller of the config; return its status and the request's id."""
        return await self.call_with(key_of(caller), **fields)

    async def call_with(self, key: str, **fields: Any) -> tuple[int, str]:
        """Make a call with any key; return its status and the request's id."""
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": "m", "input": "Hi"} | fields
        async with self.http.post(f"{self.gateway}/v1/responses", json=body, headers=headers) as answer:
            await answer.read()
            return answer.status, answer.headers["x-request-id"]

    async def ask(
        self, method: str, path: str, body: Any = None, who: str = "owner", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request to the API; return its status and what is in the JSON of the answer."""
        headers = {"Authorization": f"Bearer {KEYS[who]}"} if headers is None else headers
        async with self.http.request(method, f"{self.admin}/admin/v1{path}", json=body, headers=headers) as answer:
            if answer.content_type == "text/event-stream":
                return answer.status, await anext(events_of(answer))
            if answer.content_type == "text/csv":
                return answer.status, await answer.text()
            kind = "application/json" if answer.status < 400 else "application/problem+json"
            assert answer.content_type == kind
            return answer.status, await answer.json(content_type=None)


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """Yield the data of server-sent events."""
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield orjson.loads(line[6:])


def key_of(caller: str) -> str:
    """Return the key of a caller of the config."""
    return f"key-of-{caller}"


def console_tables(
    upstream: FakeUpstream, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> dict[str, Any]:
    """Return the tables of a gateway with callers in two teams and operators of each role; `more` replaces tables."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"TEST_{name.upper()}_KEY", key)
    callers = []
    for name, team in CALLERS.items():
        monkeypatch.setenv(f"TEST_{name.upper()}_KEY", key_of(name))
        callers.append({"name": name, "team": team, "key": f"env:TEST_{name.upper()}_KEY"})
    keys = [{"name": name, "key": f"env:TEST_{name.upper()}_KEY", **role} for name, role in OPERATORS.items()]
    return tables_for(
        upstream,
        **{
            "admin": {"port": 0, "key": keys, "trace_url": "https://traces.example/{trace_id}"},
            "caller": callers,
            "keys": {"refresh_s": 0.05},
            "state": {"use": "sqlite", "path": str(folder / "state")},
            "audit": {"path": str(folder / "audit.jsonl")},
            "price": [{"model": "*", "input": 1.0, "output": 2.0}],
            "usage": {"flush_s": 0.05, "metadata": ["project"]},
            "policy": [
                {"use": "metadata_limits"},
                {"use": "size", "max_items": 1, "mode": "report"},
                {"use": "output_tokens", "max": 100},
            ],
            **more,
        },
    )


async def start_console(
    start_gateway: Any, tables: dict[str, Any], logged: Any, http: aiohttp.ClientSession
) -> Console:
    """Start a gateway with these tables."""
    gateway = await start_gateway(tables)
    return Console(gateway, admin_of(logged), http)
