"""GET /v1/usage beside the questions of other teams."""

import asyncio

import aiohttp

from tests.conftest import StartGateway, tables_for
from tests.upstream import FakeUpstream
from tests.usage.test_usage import CALLERS, bearer

QUESTIONS = 20


async def test_a_team_does_not_wait_for_all_questions_of_another(
    http: aiohttp.ClientSession, start_gateway: StartGateway, upstream: FakeUpstream, logged
):
    """Its own is answered when it is its turn, which is the next one or the one after that."""
    gateway = await start_gateway(tables_for(upstream, caller=CALLERS))
    answered: list[str] = []

    async def ask(caller: str) -> None:
        query = {"since": "30d", "by": "hour,model"}
        async with http.get(f"{gateway}/v1/usage", params=query, headers=bearer(caller)) as answer:
            assert answer.status == 200
            answered.append(caller)

    async with asyncio.TaskGroup() as group:
        for _ in range(QUESTIONS):
            group.create_task(ask("ada"))
        group.create_task(ask("eve"))

    assert answered.index("eve") < QUESTIONS / 2
