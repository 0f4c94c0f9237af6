"""Two gateway processes on one store, while the time of day is set forward and back under both."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from tests.redis_server import RedisServer

ROOT = Path(__file__).parent.parent
HOUR_S, DAY_S = 3_600, 86_400
TIMEOUT_S = 60  # only ends a test that hangs
CONFIG = """
[server]
port = 0
[keys]
refresh_s = 0.2
[usage]
flush_s = 0.1
[[caller]]
name = "anna"
team = "search"
key = "env:ANNA_KEY"
[[policy]]
use = "rate"
requests = 3
models = ["rated"]
[[policy]]
use = "budget"
unit = "requests"
window = "day"
limit = 2
models = ["paid"]
"""


@dataclass
class Gateways:
    """The processes, and the file that shifts their time of day."""

    shift: Path
    config: Path
    http: aiohttp.ClientSession
    addresses: list[str]

    def set_clock(self, shift_s: float) -> None:
        """Shift the time of day, as seen from now."""
        new = self.shift.with_suffix(".new")
        new.write_text(str(shift_s))
        new.replace(self.shift)

    async def ask(self, method: str, path: str, body: Any = None, *, at: int = 0, key: str = "anna-key") -> Any:
        """Return the status, the body and the headers of one process's answer."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.request(method, f"{self.addresses[at]}/{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def call(self, model: str = "fast", *, at: int = 0, **fields: Any) -> Any:
        return await self.ask("POST", "responses", {"model": model, "input": "Hi", **fields}, at=at)


async def run(shift: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shifted_gateway", str(shift), *arguments, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(params=["sqlite", "redis"])
async def gateways(
    request: pytest.FixtureRequest, tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateways]:
    monkeypatch.setenv("ANNA_KEY", "anna-key")
    if request.param == "sqlite":
        state = f'use = "sqlite"\npath = "{tmp_path}/state"\ntimeout_ms = 30000\n'
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        with redis.Redis(port=server.port) as direct:
            direct.flushdb()  # the calls of other tests count for the same limits
        state = f'use = "redis"\nurl = "{server.url}"\ntimeout_ms = 30000\n'
    config = tmp_path / "headgate.toml"
    models = "".join(
        f'[[backend]]\nname = "{name}"\nuse = "replay"\npath = "{ROOT}/tests/data/canonical.sse"\npace_ms = {pace_ms}\n'
        f'[[route]]\nmodel = "{model}"\nbackend = "{name}"\n'
        for name, model, pace_ms in (("slow", "slow", 60_000), ("tape", "*", 0))
    )
    config.write_text(f"{CONFIG}[state]\n{state}background_lease_s = 30\n{models}")
    shift = tmp_path / "shift"
    shift.write_text("0")
    started = [await run(shift, "serve", "--config", str(config)) for _ in range(2)]
    addresses = []
    for process in started:
        assert process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            greeting = (await process.stdout.readline()).decode()
        addresses.append(str(re.findall(r"http://\S+/v1", greeting)[0]))
    yield Gateways(shift, config, http, addresses)
    for process in started:
        process.kill()
        await process.wait()


JUMPS = pytest.mark.parametrize("shift_s", [2 * HOUR_S, -2 * HOUR_S, 40 * DAY_S])


@JUMPS
async def test_windows_leases_and_responses_last_as_they_would(gateways: Gateways, shift_s: float):
    """A minute is not longer or shorter, work that runs is not given up, and what is stored is not lost."""
    _, kept, _ = await gateways.call()
    for at in (0, 1, 0):
        assert (await gateways.call("rated", at=at))[0] == 200
    _, queued, _ = await gateways.call("slow", background=True)
    gateways.set_clock(shift_s)
    refusals = [await gateways.call("rated", at=at) for at in (0, 1)]
    running = [(await gateways.ask("GET", f"responses/{queued['id']}", at=at))[1]["status"] for at in (0, 1)]
    found = [(await gateways.ask("GET", f"responses/{kept['id']}", at=at))[0] for at in (0, 1)]
    cancelled = (await gateways.ask("POST", f"responses/{queued['id']}/cancel", {}, at=1))[1]["status"]

    assert [status for status, _, _ in refusals] == [429, 429]
    assert all(1 <= int(headers["Retry-After"]) <= 60 for _, _, headers in refusals)
    assert {*running} <= {"queued", "in_progress"}
    assert (found, cancelled) == ([200, 200], "cancelled")


@JUMPS
async def test_budgets_and_usage_follow_the_calendar(gateways: Gateways, shift_s: float):
    """A budget of the day begins anew on another day only; every call is counted once, in the hour of its clock."""
    for at in (0, 1):
        assert (await gateways.call("paid", at=at))[0] == 200
    today = datetime.now(UTC)
    is_other_day = (today + timedelta(seconds=shift_s)).date() != today.date()
    exhausted = await gateways.call("paid")
    gateways.set_clock(shift_s)
    status, _, _ = await gateways.call("paid", at=1)
    gateways.set_clock(0)
    again, _, _ = await gateways.call("paid", at=0)
    async with asyncio.timeout(TIMEOUT_S):
        while (counted := await calls_counted(gateways, today)) < 5:
            pass

    assert (exhausted[0], status, again) == (429, 200 if is_other_day else 429, 429)
    assert counted == 5


async def calls_counted(gateways: Gateways, today: datetime) -> int:
    """Return how many calls were counted in the days around all jumps, 20 at a time."""
    total = 0
    for start in range(-20, 60, 20):
        since, until = ((today + timedelta(days=day)).date() for day in (start, start + 20))
        _, report, _ = await gateways.ask("GET", f"usage?since={since}&until={until}")
        total += int(report["total"]["calls"])
    return total


async def test_an_issued_key_is_valid_by_the_clock_as_it_stands(gateways: Gateways):
    """It ends when it has expired, and a clock that was wrong for a while ends none that has not."""
    made = await run(gateways.shift, "key", "create", "--team", "search", "--name", "ada", "--expires", "90d",
                     "--config", str(gateways.config))  # fmt: skip
    key = (await made.communicate())[0].decode().split()[0]
    for shift_s in (0, 91 * DAY_S, 0, -91 * DAY_S):
        gateways.set_clock(shift_s)
        await until_status(gateways, key, 401 if shift_s > 90 * DAY_S else 200)


async def until_status(gateways: Gateways, key: str, expected: int) -> None:
    """Ask with a key until the answer is this one: the process reads its keys again within a second."""
    async with asyncio.timeout(TIMEOUT_S):
        while (await gateways.ask("GET", "models", at=1, key=key))[0] != expected:
            pass
