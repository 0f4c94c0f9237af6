"""What was used, and what is left of budgets."""

from typing import Any

import pytest

from tests.operators import Console, console_tables, start_console

BUDGETS = [
    {"use": "budget", "limit": 1.0, "unit": "usd", "per": "team", "window": "month"},
    {"use": "budget", "limit": 5, "unit": "requests", "per": "caller", "window": "day", "mode": "report"},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "model", "window": "total"},
    {"use": "budget", "limit": 7_000, "unit": "tokens", "per": "end_user"},  # whose end users are not known
]


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    tables = console_tables(upstream, tmp_path, monkeypatch, policy=BUDGETS)
    return await start_console(start_gateway, tables, logged, http)


async def spent(console: Console, query: str, calls: int, who: str = "owner") -> Any:
    """Return a report once so many calls are in it: a process writes them in a moment."""
    while True:
        status, report = await console.ask("GET", f"/spend?{query}", who=who)
        assert status == 200
        if report["total"]["calls"] == calls:
            return report


async def settled(console: Console) -> Any:
    """Return the budgets once what was reserved is given back, in a moment after the call's end."""
    while True:
        _, found = await console.ask("GET", "/budgets")
        if all(each["used"] < 0.001 for each in found["budgets"] if each["unit"] == "usd"):
            return found


async def test_spend_is_shown_by_what_was_asked_for(console: Console):
    """The costliest first; an operator of a team sees its own."""
    for caller, project in (("ada", "x"), ("ada", "y"), ("cleo", "x")):
        await console.call(caller, metadata={"project": project}, input=f"{caller} {project}")
    by_caller = await spent(console, "by=caller", 3)
    by_project = await spent(console, "by=project,team&since=24h", 3)
    own = await spent(console, "by=team", 2, "search_viewer")
    _, text = await console.ask("GET", "/spend/csv?by=caller", who="search_viewer")

    assert [line["labels"]["caller"] for line in by_caller["lines"]] == ["ada", "cleo"]
    assert by_caller["lines"][0]["numbers"]["cost_usd"] == pytest.approx(
        2 * by_caller["lines"][1]["numbers"]["cost_usd"]
    )
    assert len(by_project["lines"]) == 3
    assert [line["labels"] for line in own["lines"]] == [{"team": "search"}]
    assert (await console.ask("GET", "/spend?team=billing", who="search_viewer"))[0] == 403
    assert [line.partition(",")[0] for line in text.splitlines()] == ["caller", "ada"]


async def test_budgets_have_what_is_left_and_a_forecast(console: Console):
    """Of teams, callers and models; those of other teams are not shown to an operator of one."""
    _, before = await console.ask("GET", "/budgets")
    await console.call("ada", model="gpt-5.6")
    after = await settled(console)
    _, own = await console.ask("GET", "/budgets", who="search_admin")
    used = {each["shared_by"]: each["used"] for each in after["budgets"] if each["used"]}

    assert {each["shared_by"]: each["used"] for each in before["budgets"] if each["used"]} == {}
    assert used == {"search": pytest.approx(1.9e-05), "search/ada": 1, "gpt-5.6": 1}
    assert {each["shared_by"] for each in own["budgets"]} == {"search", "search/ada", "search/ben"}
    for each in after["budgets"]:
        assert each["left"] == pytest.approx(each["limit"] - each["used"])
        assert each["forecast"] is None or each["forecast"] >= each["used"]
