"""What an operator of one team is shown: nothing of another team's, by no endpoint of the document and by no page."""

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.admin.console.pages import PAGES
from proxy.admin.roles import Operator
from tests.admin.api.test_dispatch import BODIES
from tests.operators import KEYS, Console, console_tables, start_console
from tests.timeouts import pause
from tests.upstream import canonical

MARKS = ("cleo", "billing", "zoe", "their-model", "their-project", "their-user", "77")
"""What only calls, keys and policies of the other team have: also the limit of a policy for its caller."""
POLICIES = [
    {"use": "metadata_limits"},
    {"use": "size", "max_items": 77, "callers": ["cleo"], "mode": "report"},
    {"use": "budget", "limit": 1.0, "unit": "usd", "per": "team"},
    {"use": "budget", "limit": 5, "unit": "requests", "per": "caller", "window": "day", "on_unpriced": "allow"},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "model"},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "end_user", "callers": ["ada", "cleo"]},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "metadata.project"},
]
THEIRS: dict[str, Any] = {"model": "their-model", "metadata": {"project": "their-project"}, "user": "their-user"}
QUERIES = {
    "list_requests": ("?team=billing", "?caller=cleo", "?model=their-model"), "get_spend": ("?by=team,caller,project",),
    "get_spend_csv": ("?by=caller,model,project,key",), "list_models": ("?caller=cleo", "?model=their-model"),
}  # fmt: skip
"""What an operator may ask for beside the plain path."""


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    tables = console_tables(
        upstream, tmp_path, monkeypatch, policy=POLICIES, price=[{"model": "*", "input": 1.0, "output": 2.0}]
    )
    return await start_console(start_gateway, tables, logged, http)


async def their_ids(console: Console) -> dict[str, str]:
    """Make calls of both teams and a key of the other one; return what its things are called in paths."""
    await console.call("ada", user="our-user", metadata={"project": "our-project"})
    await console.call("cleo", **{**THEIRS, "metadata": {"k" * 65: "their-project"}})
    _, made = await console.call("cleo", **THEIRS)
    _, key = await console.ask("POST", "/keys", {"name": "zoe", "team": "billing"})
    while (await console.ask("GET", "/spend"))[1]["total"]["calls"] < 3:
        await pause()
    return {"/requests/{id}": made, "/keys/{id}": key["key"]["id"], "/targets/{name}": "fake"}


async def answers(console: Console, who: str, ids: dict[str, str]) -> dict[str, str]:
    """Return what each operation of the document answers, by its name and what it was asked for."""
    async with console.http.get(f"{console.admin}/admin/openapi.json") as answer:
        document = await answer.json()
    found = {}
    for template, operations in document["paths"].items():
        path = template.removeprefix("/admin/v1")
        for name, value in ids.items():
            path = path.replace(name, re.sub(r"\{\w+\}", value, name))
        for method, operation in operations.items():
            named = operation["operationId"]
            if named == "revoke_key" and who == "owner":
                continue
            for query in ("", *QUERIES.get(named, ())):
                status, text = await console.ask(method.upper(), f"{path}{query}", BODIES.get(named), who)
                assert status < 500
                found[f"{named}{query}"] = f"{text}"
    return found


async def test_operators_of_a_team_see_nothing_of_another_one(console: Console):
    """The owner sees each of the marks, so that their absence says something; a new endpoint is in the document."""
    ids = await their_ids(console)
    everything = str(await answers(console, "owner", ids))
    assert [mark for mark in MARKS if mark not in everything] == []
    for who in ("search_admin", "search_viewer"):
        own = await answers(console, who, ids)
        shown = {
            name: [mark for mark in MARKS if re.search(rf"(?<![\w.:-]){mark}(?![\w.])", text)]
            for name, text in own.items()
        }

        assert {name: marks for name, marks in shown.items() if marks} == {}
        assert "ada" in own["list_requests"]


async def test_pages_show_an_operator_of_a_team_nothing_of_another_one(console: Console):
    """They are made of the same answers; what was typed into an address is on its page."""
    ids = await their_ids(console)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.post(f"{console.admin}/admin/sign-in", data={"key": KEYS["search_admin"]}):
            pass
        for page in PAGES:
            path = page.path.replace("{id}", ids["/requests/{id}"])
            async with browser.get(f"{console.admin}{path}") as answer:
                text = re.sub(r"<[^>]+>", " ", await answer.text())

            is_shown = page.in_menu and page.is_for(Operator("ada", "team_admin", "search"))
            assert answer.status in ((200,) if is_shown else (403, 404)), page.path
            assert [mark for mark in MARKS if re.search(rf"\b{mark}\b", text)] == [], page.path


async def test_calls_in_flight_are_those_of_the_team(console: Console, upstream):
    """A call of another team is not counted; all of them are for operators of all teams."""
    arrived, proceed = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await proceed.wait()
        return await canonical(request)

    upstream.answer = answer
    running = asyncio.create_task(console.call("cleo"))
    await arrived.wait()
    seen: dict[str, float] = {}
    while seen.get("owner") != 1 or seen.get("search_viewer") is None:
        for who in ("search_viewer", "owner"):
            _, report = await console.ask("GET", "/now", who=who)
            seen[who] = report["now"] and report["now"]["in_flight"]
    async with console.http.get(f"{console.admin}/metrics") as answer_of_metrics:
        text = await answer_of_metrics.text()
    proceed.set()
    await running

    assert seen == {"owner": 1, "search_viewer": 0}
    assert 'headgate_team_calls{headgate_team="billing"} 1' in text
