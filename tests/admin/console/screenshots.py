"""Pictures of the console of a gateway with calls, for deploy/README.md: python -m tests.admin.console.screenshots.

They are of a real run: a gateway with its policies, cache and budgets before a fake upstream, and Chromium.
"""

import asyncio
import itertools
import tempfile
from pathlib import Path

import aiohttp
import orjson
import pytest
import structlog
from aiohttp import web

from proxy.app import running
from proxy.config.build import build
from tests.browser import BrowserPage, open_page, running_chromium
from tests.metrics import admin_of
from tests.operators import KEYS, Console, console_tables
from tests.upstream import FakeUpstream, canonical

FOLDER = Path(__file__).parents[3] / "deploy" / "images"
LASTS_S = 90.0
"""How long calls are made before the pictures, in seconds: charts need some samples."""
MODELS = ("gpt-5.6", "gpt-5.6-mini", "o5")
TRIED = {"model": "gpt-5.6", "input": [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Hello?"}]}
POLICIES = [
    {"use": "metadata_limits"},
    {"use": "size", "max_items": 1, "mode": "report"},
    {"use": "output_tokens", "max": 4096},
    {"use": "budget", "limit": 25, "unit": "usd", "per": "team"},
]
PRICES = [{"model": "*mini", "input": 25, "output": 200}, {"model": "*", "input": 125, "output": 1000}]


async def main() -> None:
    """Make the pictures."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        async with FakeUpstream() as upstream, aiohttp.ClientSession() as http:
            upstream.answer = _answer(itertools.count())
            tables = console_tables(upstream, Path(folder), patch, policy=POLICIES, price=PRICES)
            with structlog.testing.capture_logs() as logged:
                async with running(build({**tables, "server": {"port": 0, "drain_s": 0}})) as gateway:
                    console = Console(gateway, admin_of(logged), http)
                    await _make_calls(console)
                    with running_chromium(Path(folder) / "profile") as browser:
                        async with open_page(browser) as page:
                            await _take(console, page)


def _answer(numbers: "itertools.count[int]"):
    """Return an upstream that takes some time, and fails now and then."""

    async def answer(request: web.Request) -> web.StreamResponse:
        number = next(numbers)
        if request.method == "POST":
            await asyncio.sleep(0.05 + 0.04 * (number % 7))
        if number % 23 == 11:
            return web.json_response({"error": {"message": "overloaded", "code": "server_error"}}, status=500)
        return await canonical(request)

    return answer


async def _make_calls(console: Console) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + LASTS_S
    for number in itertools.count():
        if loop.time() >= end:
            return
        fields: dict[str, object] = {
            "model": MODELS[number % 5 % 3],
            "stream": number % 2 == 0,
            "input": f"Hi {number}",
        }
        if number % 4 == 0:
            fields |= {"prompt_cache_key": "greeting", "input": "Hello!", "stream": False}
        if number % 9 == 5:
            fields["metadata"] = {"k" * 65: "v"}
        if number % 7 == 3:
            fields["input"] = TRIED["input"]
        await console.call(("ada", "ben", "cleo")[number % 3], **fields)


async def _take(console: Console, page: BrowserPage) -> None:
    FOLDER.mkdir(exist_ok=True)
    await page.resize(1200, 760)
    await page.open(f"{console.admin}/admin/")
    await page.fill(key=KEYS["owner"])
    await page.click("main button")
    _save("now", await page.picture())
    await page.open(f"{console.admin}/admin/requests")
    _save("requests", await page.picture())
    _, found = await console.ask("GET", "/requests?outcome=success&limit=500")
    retried = [each["id"] for each in found["requests"] if each["duration_ms"] > 300] or [found["requests"][0]["id"]]
    await page.open(f"{console.admin}/admin/requests/{await _with_two_attempts(console, retried)}")
    _save("request", await page.picture())
    await page.open(f"{console.admin}/admin/spend?by=team,caller&since=today")
    _save("spend", await page.picture())
    await page.open(f"{console.admin}/admin/try")
    await page.fill(body=orjson.dumps(TRIED, option=orjson.OPT_INDENT_2).decode(), caller="ada")
    await page.click("main form button")
    _save("try", await page.picture())


async def _with_two_attempts(console: Console, ids: list[str]) -> str:
    """Return the id of a request that was sent twice, or any."""
    for request_id in ids:
        _, detail = await console.ask("GET", f"/requests/{request_id}")
        if len(detail["attempts"]) > 1:
            return request_id
    return ids[0]


def _save(name: str, picture: bytes) -> None:
    (FOLDER / f"console-{name}.png").write_bytes(picture)


if __name__ == "__main__":
    asyncio.run(main())
