"""How many calls are in flight, by keys and for some callers only, behind a real gateway."""

import asyncio
import hashlib

from aiohttp import web

from tests.conftest import StartGateway, tables_for
from tests.raw import until
from tests.test_limits_over_time import json_call
from tests.upstream import FakeUpstream, canonical

KEYS = {"first": "anna", "second": "anna", "free": "ben", "reported": "carol", "not-yet": "dora"}
POLICY = {"use": "concurrency", "max": 1, "per": "key"}
MODES = ({"callers": ["anna"]}, {"callers": ["carol"], "mode": "report"}, {"callers": ["dora"], "rollout": 0})


async def test_each_key_of_a_caller_has_its_own_places(start_gateway: StartGateway, upstream: FakeUpstream, http):
    """A second call of a key is refused while the first one runs; report mode, selectors and rollout apply."""
    release = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return await canonical(request)

    upstream.answer = hold
    callers = [
        {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest(), "team": "search"}
        for key, name in KEYS.items()
    ]
    policies = [POLICY | mode for mode in MODES]
    gateway = await start_gateway(tables_for(upstream, cache=None, policy=policies, caller=callers))
    held, second = [], {}
    for key in KEYS:
        http.headers["Authorization"] = f"Bearer {key}"
        for number in range(2):
            before = len(upstream.requests)
            call = asyncio.create_task(json_call(http, gateway))
            await until(lambda call=call, before=before: call.done() or len(upstream.requests) > before)
            if call.done():
                second[key] = (number, *call.result())
            else:
                held.append(call)
    release.set()
    answered = await asyncio.gather(*held)
    http.headers["Authorization"] = "Bearer first"
    again = await json_call(http, gateway)

    assert second == {key: (1, 429, "concurrency.too_many") for key, name in KEYS.items() if name == "anna"}
    assert {status for status, _ in answered} == {200}
    assert (len(held), again) == (8, (200, None))
