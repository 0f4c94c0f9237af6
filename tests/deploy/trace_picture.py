"""`python -m tests.deploy.trace_picture`: makes deploy/images/trace.png, the trace of one call in Phoenix.

Phoenix runs in an environment of its own (`pip install arize-phoenix`, `phoenix serve`); Chromium takes the picture.
"""

import argparse
import asyncio
import base64
import itertools
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry.trace import Tracer

from proxy.app import running
from proxy.config.build import build
from proxy.telemetry.otlp import tracer_provider
from tests.conftest import tables_for
from tests.upstream import FakeUpstream, canonical

PICTURE = Path(__file__).parents[2] / "deploy" / "images" / "trace.png"
SIZE = "1280,860"
CHROMIUM = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0"]
LISTENING = re.compile(rb"DevTools listening on ws://(\S+?)/")
CLICKED = ("[aria-label='Collapse side navigation']", "[role=tab][data-key=events]", "[id$=events] [slot=trigger]")
"""What is clicked in Phoenix, one after the other: in the end each event of the request is shown."""
CALL = {"model": "gpt-5", "stream": True, "prompt_cache_key": "k", "input": "Hello there"}


def tables(upstream: FakeUpstream) -> dict[str, Any]:
    """Return a config with a backend that fails, another one that answers, and a policy that reports."""
    backend = {"use": "upstream", "keeps_state": True}
    return tables_for(
        upstream,
        backend=[
            {"name": "first", "base_url": f"{upstream.address}/busy/v1", **backend},
            {"name": "second", "base_url": f"{upstream.address}/v1", **backend},
        ],
        route=[{"model": "*", "backends": ["first", "second"]}],
        policy=[{"use": "models", "allow": ["gpt-4*"], "mode": "report"}],
        price=[{"model": "*", "input": 1.25, "output": 10}],
        trace={"semconv": "both"},
        server={"port": 0},
    )


async def answer(request: web.Request) -> web.StreamResponse:
    """Refuse for now at the first address; answer slowly enough to be seen at the second."""
    is_busy = "/busy/" in request.path
    await asyncio.sleep(0.05 if is_busy else 0.2)
    error = {"error": {"message": "busy", "type": "t", "code": "busy"}}
    return web.json_response(error, status=503) if is_busy else await canonical(request)


async def trace_call(tracer: Tracer, http: aiohttp.ClientSession) -> None:
    """Make one call that a policy reports, the cache misses, and a second backend answers."""
    async with (
        FakeUpstream(answer=answer) as upstream,
        running(build(tables(upstream)), tracer) as gateway,
        http.post(f"{gateway}/v1/responses", json=CALL) as answered,
    ):
        await answered.read()


async def newest_trace(http: aiohttp.ClientSession, phoenix: str) -> str:
    """Return the address of the page of the trace that Phoenix has received last."""
    async with http.get(f"{phoenix}/v1/projects") as answered:
        project = next(each["id"] for each in (await answered.json())["data"] if each["name"] == "default")
    async with http.get(f"{phoenix}/v1/projects/{project}/spans?limit=1") as answered:
        (span,) = (await answered.json())["data"]
    return f"{phoenix}/projects/{project}/traces/{span['context']['trace_id']}"


async def photograph(http: aiohttp.ClientSession, page: str, wait_s: float) -> bytes:
    """Return a picture of a page, in PNG, after the clicks."""
    with TemporaryDirectory() as profile:
        command = [*CHROMIUM, f"--user-data-dir={profile}", f"--window-size={SIZE}", page]
        browser = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert browser.stderr is not None
        while (found := LISTENING.search(await browser.stderr.readline())) is None:
            pass
        async with http.get(f"http://{found[1].decode()}/json/list") as answered:
            tab = next(each for each in await answered.json(content_type=None) if each["type"] == "page")
        async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = itertools.count()

            async def ask(method: str, **params: Any) -> Any:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": params})
                while (message := await socket.receive_json()).get("id") != number:
                    pass
                return message["result"]

            for clicked in CLICKED:
                await asyncio.sleep(wait_s)  # a page of Phoenix does not say when it is complete
                script = f'for (const found of document.querySelectorAll("{clicked}")) found.click()'
                await ask("Runtime.evaluate", expression=script)
            await asyncio.sleep(wait_s)
            picture = await ask("Page.captureScreenshot", format="png")
            await ask("Browser.close")
        await browser.wait()
    return base64.b64decode(picture["data"])


async def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.deploy.trace_picture", description="A trace in Phoenix.")
    options.add_argument("--phoenix", default="http://127.0.0.1:6006", help="where Phoenix listens")
    options.add_argument("--wait-s", type=float, default=4, help="how long Phoenix takes for a page")
    chosen = options.parse_args()
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{chosen.phoenix}/v1/traces"
    provider = tracer_provider()
    assert provider is not None
    async with aiohttp.ClientSession() as http:
        await trace_call(provider.get_tracer("headgate"), http)
        provider.shutdown()
        await asyncio.sleep(chosen.wait_s)  # Phoenix stores spans in the background
        page = await newest_trace(http, chosen.phoenix)
        PICTURE.write_bytes(await photograph(http, page, chosen.wait_s))
    sys.stdout.write(f"{PICTURE} shows {page}\n")


if __name__ == "__main__":
    asyncio.run(main())
