"""What was used, and what is left of budgets."""

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.operators import Console, console_tables, start_console
from tests.timeouts import ask_until

BUDGETS = [
    {"use": "budget", "limit": 1.0, "unit": "usd", "per": "team", "window": "month"},
    {"use": "budget", "limit": 5, "unit": "requests", "per": "caller", "window": "day", "mode": "report"},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "model", "window": "total"},
    {"use": "budget", "limit": 7_000, "unit": "tokens", "per": "end_user"},
    {"use": "budget", "limit": 9, "unit": "requests", "per": "metadata.project"},
]


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    tables = console_tables(upstream, tmp_path, monkeypatch, policy=BUDGETS)
    return await start_console(start_gateway, tables, logged, http)


async def spent(console: Console, query: str, calls: int, who: str = "owner") -> Any:
    """Return a report once so many calls are in it: a process writes them in a moment."""
    status, report = await ask_until(
        lambda: console.ask("GET", f"/spend?{query}", who=who),
        lambda answer: answer[0] != 200 or answer[1]["total"]["calls"] == calls,
    )
    assert status == 200
    return report


async def settled(console: Console) -> Any:
    """Return the budgets once what was reserved is given back, in a moment after the call's end."""

    def are_given_back(answer: tuple[int, Any]) -> bool:
        return all(each["used"] < 0.001 for each in answer[1]["budgets"] if each["unit"] == "usd")

    _, found = await ask_until(lambda: console.ask("GET", "/budgets"), are_given_back)
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
    used = {(each["shared_by"], each["unit"]): each["used"] for each in after["budgets"] if each["used"]}

    assert [each for each in before["budgets"] if each["used"]] == []
    assert used == {
        ("search", "usd"): pytest.approx(1.9e-05), ("search/ada", "requests"): 1, ("gpt-5.6", "requests"): 1,
        ("search/", "tokens"): 12, ("search/", "requests"): 1,
    }  # fmt: skip
    assert {each["shared_by"] for each in own["budgets"]} == {"search", "search/ada", "search/ben", "search/"}
    for each in after["budgets"]:
        assert each["left"] == pytest.approx(each["limit"] - each["used"])
        assert each["forecast"] is None or each["forecast"] >= each["used"]


async def pages(console: Console, policy: str, limit: int, who: str = "owner") -> list[list[str]]:
    """Return who has used something of a budget, page by page."""
    found: list[list[str]] = []
    after = ""
    while True:
        query = urlencode({"policy": policy, "after": after, "limit": limit})
        _, page = await console.ask("GET", f"/budgets?{query}", who=who)
        found.append([each["shared_by"] for each in page["budgets"]])
        assert page["is_complete"]
        if not page["more"]:
            return found
        after = page["more"][0]["after"]


async def test_budgets_of_end_users_and_metadata_are_listed_in_pages(console: Console):
    """In the order of their names; a team sees its own end users and values of metadata."""
    for number in range(5):
        caller = "cleo" if number == 3 else "ada"
        await console.call(caller, user=f"user {number}", metadata={"project": f"<p{number}>"}, input=f"{number}")
    _, plain = await console.ask("GET", "/budgets?limit=2")

    assert await pages(console, "budget:end_user.tokens.month", 2) == [
        ["billing/user 3", "search/user 0"], ["search/user 1", "search/user 2"], ["search/user 4"],
    ]  # fmt: skip
    assert await pages(console, "budget:end_user.tokens.month", 9, "search_viewer") == [
        [f"search/user {n}" for n in (0, 1, 2, 4)]
    ]
    assert await pages(console, "budget:metadata.project.requests.month", 9) == [
        ["billing/<p3>", *(f"search/<p{n}>" for n in (0, 1, 2, 4))]
    ]
    assert await pages(console, "budget:metadata.project.requests.month", 9, "search_viewer") == [
        [f"search/<p{n}>" for n in (0, 1, 2, 4)]
    ]
    assert [each["policy"] for each in plain["more"]] == [
        "budget:end_user.tokens.month",
        "budget:metadata.project.requests.month",
    ]
    assert {"search", "search/ada"} <= {each["shared_by"] for each in plain["budgets"]}


async def test_a_search_for_budgets_ends(console: Console, monkeypatch):
    """It says that it has not looked at all of them."""
    for number in range(3):
        await console.call("ada", user=f"user {number}", input=f"{number}")
    monkeypatch.setattr("proxy.admin.api.spend.MOST_NOTED", 2)
    _, found = await console.ask("GET", "/budgets?policy=budget:end_user.tokens.month")

    assert (len(found["budgets"]), found["is_complete"]) == (2, False)
