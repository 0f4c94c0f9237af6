"""Two teams share a local model behind a real gateway. Waiting is counted in answers, not in seconds."""

import asyncio
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest

from tests.backends.local.conftest import until
from tests.backends.local.costly_requests import COSTLY

PATIENCE_S = 120
CONNECTIONS = 60
RUNS_ALONE = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


def tables(folder, **keys):
    caller = [
        {"name": name, "team": name, "key_sha256": sha256(name.encode()).hexdigest()} for name in ("busy", "quiet")
    ]
    backend = {
        "name": "local",
        "use": "local",
        "path": str(folder),
        "workers": 1,
        "max_output_tokens": 2000,
        "engine": "thread",  # one event loop: no job can start or end between two turns of the clients that count answers
        "max_wait_s": 1e6,  # the limit of estimated time has tests of its own; here it would depend on the machine's speed
        **keys,
    }
    return {"caller": caller, "backend": [backend], "route": [{"model": "*", "backend": "local"}]}


class Client:
    """A team's client that counts its answers by status."""

    def __init__(self, http, address, team):
        self._http, self._url, self._headers = http, f"{address}/v1/responses", {"Authorization": f"Bearer {team}"}
        self.statuses = {}
        self._answered = asyncio.Event()

    async def call(self, **body):
        body = {"model": "tick", "input": "Hi", "max_output_tokens": 30} | body
        async with self._http.post(self._url, json=body, headers=self._headers) as answer:
            await answer.read()
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        if answer.status == 200:
            self._answered.set()
            self._answered = asyncio.Event()
        return answer.status

    async def repeat(self, **body):
        """Call again and again; after a refusal wait for an answer of the team, because only that frees a place."""
        while True:
            if await self.call(**body) == 429:
                await self._answered.wait()


@asynccontextmanager
async def crowd(client, **body):
    """Keep many connections busy."""
    tasks = [asyncio.create_task(client.repeat(**body)) for _ in range(CONNECTIONS)]
    try:
        await until(lambda: client.statuses.get(200) and client.statuses.get(429))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("memory", [{"kv_bytes": 10**10}, {"kv_bytes": 2_500_000}])
async def test_a_crowd_of_one_team_never_has_another_team_refused(endless, start_gateway, http, memory):
    """Each single call of the other team waits for a few answers of the crowd, also where memory is what lacks."""
    address = await start_gateway(tables(endless, context_length=2048, max_waiting=40, **memory))
    busy, quiet = (Client(http, address, team) for team in ("busy", "quiet"))
    waited = []
    async with asyncio.timeout(PATIENCE_S), crowd(busy, max_output_tokens=100, **RUNS_ALONE):
        for _ in range(10):
            before = busy.statuses[200]
            await quiet.call()
            waited.append(busy.statuses[200] - before)

    assert quiet.statuses == {200: 10}
    assert max(waited) <= 12


async def test_costly_requests_of_one_team_do_not_keep_another_team_waiting(endless, start_gateway, http):
    """Six of them at a time, again and again; all are refused. The other team's tools are prepared between them."""
    address = await start_gateway(tables(endless, context_length=2048, kv_bytes=10**10))
    busy, quiet = (Client(http, address, team) for team in ("busy", "quiet"))
    costly = ("combined choices", "references", "required", "terminals", "a long terminal", "a regular expression")
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}

    async def repeat(body):
        while True:
            await busy.call(**body)

    attack = [asyncio.create_task(repeat(COSTLY[name])) for name in costly]
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(5):
                busy.statuses.clear()
                await until(lambda: busy.statuses)
                await quiet.call(tools=[tool], metadata={"note": "x" * 300})
    finally:
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)

    assert quiet.statuses == {200: 5}
    assert set(busy.statuses) == {400}
