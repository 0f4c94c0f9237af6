"""States that older versions have written: they are read, and what a changed secret makes unreadable is not lost unsaid.

The files in tests/data/state are dumps of what gateways of those versions stored: answers, a conversation, a background
response with its events, owners, an issued key.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.stores.sqlite import SqliteStore
from tests.conftest import StartGateway

DATA = Path(__file__).parent.parent / "data"
WRITTEN_AT = 1_796_059_000
"""About when they were written, in seconds since 1970; what they have expires after that, so they are moved to now."""
SECRET = "a secret of more than 32 characters."
KEY = "hg_LLq1wmu6oAlQEZQDLbLDxQDfLWwDV5dB3eu0TIzNW5h3GTyZw"
PLAIN, SEALED = "2026-11-29", "2026-11-30"
NAMES = {
    PLAIN: ("resp_86c4141d8a69876ac3e3ce52f91083abcd15d4aafefa321b", "conv_cce17e3d81a6e8a764a7fcea73102b6d0a0d89f9da2b1768"),
    SEALED: ("resp_fe3e0d1736e3dc45e1a5a3fabc6af06c56f09564a2018610", "conv_d35781599b9a44ec53ba6e0b7df8a0a1c1f9e610fe1cba39"),
}  # fmt: skip
"""The background response and the conversation of each."""


@pytest.fixture
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The file of an older version, which the test names."""
    path = tmp_path / "state"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((DATA / "state" / f"{request.param}.sql").read_text())
        database.execute("UPDATE record SET expires_at = expires_at + ?", (time.time() - WRITTEN_AT,))
        database.commit()
    return path


class Client:
    """Asks a gateway as a caller of a team."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address = address
        self.http = http

    async def ask(self, method: str, path: str, body: Any = None, key: str = "anna-key") -> tuple[int, Any]:
        """Return the status, and the object or the text."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.request(method, f"{self.address}/v1/{path}", json=body, headers=headers) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.text()


@pytest.fixture
def start(start_gateway: StartGateway, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch):
    """Start gateways with the file, and another secret or none: `await start(path, secret)`."""

    async def start(path: Path, secret: str | None) -> Client:
        for name in ("ANNA", "BEN"):
            monkeypatch.setenv(f"{name}_KEY", f"{name.lower()}-key")
        monkeypatch.setenv("STATE_SECRET", secret or "")
        sealed = {} if secret is None else {"secret": "env:STATE_SECRET"}
        address = await start_gateway({
            "caller": [{"name": "anna", "team": "search", "key": "env:ANNA_KEY"},
                       {"name": "ben", "team": "shop", "key": "env:BEN_KEY"}],
            "state": {"use": "sqlite", "path": str(path), "timeout_ms": 30_000} | sealed, "keys": {},
            "backend": [{"name": "tape", "use": "replay", "path": str(DATA / "canonical.sse")}],
            "route": [{"model": "*", "backend": "tape"}],
        })  # fmt: skip
        return Client(address, http)

    return start


@pytest.mark.parametrize(("written", "secret"), [(PLAIN, None), (SEALED, SECRET)], indirect=["written"])
async def test_what_an_older_version_stored_is_read(written: Path, secret: str | None, start, request, logged):
    """Answers, their events, conversations and owners; they are continued, and deleted."""
    response, conversation = NAMES[request.node.callspec.params["written"]]
    client = await start(written, secret)
    _, found = await client.ask("GET", f"responses/{response}")
    _, items = await client.ask("GET", f"responses/{response}/input_items")
    _, events = await client.ask("GET", f"responses/{response}?stream=true")
    _, page = await client.ask("GET", f"conversations/{conversation}/items?order=asc")
    output = {"type": "function_call_output", "call_id": "call_0001", "output": "Sunny"}
    more = {"model": "m", "input": [output]}
    continued, _ = await client.ask("POST", "responses", more | {"previous_response_id": response})
    added, _ = await client.ask("POST", "responses", more | {"conversation": conversation})
    foreign, _ = await client.ask("GET", f"responses/{response}", key="ben-key")
    deleted, _ = await client.ask("DELETE", f"responses/{response}")
    gone, _ = await client.ask("GET", f"responses/{response}")

    assert (found["status"], len(found["output"]), items["data"][0]["content"][0]["text"]) == ("completed", 3, "Bg")
    assert events.count("event: ") == 21
    assert [item["type"] for item in page["data"]] == ["message", "message", "reasoning", "message", "function_call"]
    assert (continued, added, foreign, deleted, gone) == (200, 200, 404, 200, 404)
    assert "state.secret_changed" not in [line["event"] for line in logged]


@pytest.mark.parametrize("written", [SEALED], indirect=True)
async def test_keys_and_usage_of_an_older_version_count(written: Path, start):
    """An issued key is known, and the hour has what was counted then."""
    client = await start(written, SECRET)
    status, _ = await client.ask("GET", "models", key=KEY)
    store = SqliteStore(path=written, timeout_ms=30_000)
    await store.start()
    rows = await store.rows("headgate:usage:2026-11-30T17")
    await store.close()

    assert status == 200
    assert {row.startswith('["search","anna","",') for row in rows} == {True}
    assert sum(numbers[0] for numbers in rows.values()) > 0


@pytest.mark.parametrize(
    ("written", "secret", "back", "reason"),
    [
        (PLAIN, SECRET, None, "it had none"),
        (SEALED, None, SECRET, "it has none now"),
        (SEALED, "another secret of more than 32 chars.", SECRET, None),
    ],
    indirect=["written"],
)
async def test_a_state_of_another_secret_is_not_lost_unsaid(  # noqa: PLR0913, PLR0917
    written: Path, secret: str | None, back: str | None, reason: str | None, start, request, logged
):
    """It is logged at the start if it can be known, and when a record is met. With the secret from before all is back."""
    response, _ = NAMES[request.node.callspec.params["written"]]
    client = await start(written, secret)
    at_start = [line["reason"] for line in logged if line["event"] == "state.secret_changed"]
    statuses = [(await client.ask("GET", f"responses/{response}"))[0] for _ in range(2)]
    met = [line["kind"] for line in logged if line["event"] == "state.unreadable"]
    await start(written, secret)
    again = [line["reason"] for line in logged if line["event"] == "state.secret_changed"]
    status, _ = await (await start(written, back)).ask("GET", f"responses/{response}")
    last = [line["reason"] for line in logged if line["event"] == "state.secret_changed"]

    assert at_start == again == ([] if reason is None else [reason])
    assert (statuses, met, status) == ([404, 404], ["response"], 200)
    assert len(last) == len(again) + 1, "it has changed once more"
