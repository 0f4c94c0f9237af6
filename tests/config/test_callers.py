"""Callers, teams and secrets of a config."""

import tomllib
import traceback
from typing import Any

import pytest

from proxy.config.build import ConfigError, build

KEY = "sk-must-not-be-shown"
MINIMAL = """
[[backend]]
name = "canned"
use = "replay"
path = "canned.sse"

[[route]]
model = "*"
backend = "canned"
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with a key."""
    monkeypatch.setenv("GATE_KEY", KEY)


def typed(more: str = "") -> dict[str, Any]:
    """Return the tables of a config that is valid without `more`."""
    return tomllib.loads(MINIMAL + more)


def fault(tables: dict[str, Any]) -> str:
    """Return the error message for a config that is refused."""
    with pytest.raises(ConfigError) as caught:
        build(tables)
    return str(caught.value)


def test_secrets_are_never_shown():
    """In no printed form of the config."""
    config = build(
        typed(
            '[[caller]]\nname = "a"\nkey = "env:GATE_KEY"\n[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "env:GATE_KEY"\n[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "env:GATE_KEY"\n[cache]\nuse = "redis"\npassword = "env:GATE_KEY"\n'
        )
    )
    shown = f"{config!r} {config} {config.callers} {config.rules} {config.backends} {config.cache_store!r}"

    assert KEY not in shown
    assert config.callers[0].key is not None
    assert config.callers[0].key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "text",
    [
        f'[[caller]]\nname = "a"\nkey = "{KEY}"',
        f'[[caller]]\nname = "a"\nkee = "{KEY}"',
        f'[[caller]]\nname = ["{KEY}"]',
        f'[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "{KEY}"',
        f'[[policy]]\nuse = "safety_identifier"\nkey = "{KEY}"',
        f'[cache]\nuse = "redis"\npassword = "{KEY}"',
        f'[server]\nport = "{KEY}"',
        f'token = "{KEY}"',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(text: str):
    """Nor by the cause of the error, which a traceback would print."""
    with pytest.raises(ConfigError) as caught:
        build(tomllib.loads(text + MINIMAL) if not text.startswith("[") else typed("\n" + text))

    assert KEY not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_written_as_the_name_of_a_secret_is_not_repeated(kind: str):
    """`key = "env:<the key itself>"` is an easy mistake; the error names the table's key only."""
    text = f'[[caller]]\nname = "a"\nkey = "{kind}:{KEY}"'
    with pytest.raises(ConfigError) as caught:
        build(typed("\n" + text))
    whole = "".join(traceback.format_exception(caught.value))

    assert str(caught.value).startswith("caller[0].key: the ")
    assert KEY not in whole


AMBIGUOUS = {
    "a name that is a team": [("search", ""), ("batch", "search")],
    "a name that is a later team": [("batch", "search"), ("search", "")],
    "a name that is the team of two": [("a", "search"), ("b", "search"), ("search", "")],
}


@pytest.mark.parametrize("callers", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_caller_without_a_team_must_not_be_named_like_a_team(callers: list[tuple[str, str]]):
    """It would share cached answers and budgets with callers that it does not know."""
    message = fault(typed() | {"caller": caller_tables(callers)})

    assert ".name: 'search' is also the team of caller[" in message
    assert message.endswith("give it a team, or it would share that team's cache and budgets")


@pytest.mark.parametrize(
    "callers",
    [
        [("search", "search"), ("batch", "search")],
        [("a", ""), ("b", "")],
        [("search", "other"), ("batch", "search")],
        [("Search", ""), ("batch", "search")],
    ],
)
def test_callers_with_clear_teams_are_accepted(callers: list[tuple[str, str]]):
    """A caller that names its team belongs to that one, whatever its own name is."""
    built = build(typed() | {"caller": caller_tables(callers)}).callers

    assert [(caller.name, caller.team) for caller in built] == [(name, team or name) for name, team in callers]


def caller_tables(callers: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"name": name, "key_sha256": f"{index:064x}"} | ({"team": team} if team else {})
        for index, (name, team) in enumerate(callers)
    ]
