"""Callers, teams and secrets of a config."""

import traceback

import pytest

from proxy.config.build import ConfigError, build
from tests.configs import KEY, config_with, fault


def test_secrets_are_never_printed():
    """No printed form of the config contains one."""
    config = build(
        config_with(
            '[[caller]]\nname = "a"\nkey = "env:GATEWAY_KEY"\n[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "env:GATEWAY_KEY"\n[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "env:GATEWAY_KEY"\n[cache]\nuse = "redis"\npassword = "env:GATEWAY_KEY"\n'
        )
    )
    printed = f"{config!r} {config} {config.callers} {config.rules} {config.backends} {config.cache_store!r}"

    assert KEY not in printed
    assert config.callers[0].key is not None
    assert config.callers[0].key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "text",
    [
        f'[[caller]]\nname = "a"\nkee = "{KEY}"',
        f'[[caller]]\nname = ["{KEY}"]',
        f'[[policy]]\nuse = "safety_identifier"\nkey = "{KEY}"',
        f'[cache]\nuse = "redis"\npassword = "{KEY}"',
        f'[server]\nport = "{KEY}"',
        f'token = "{KEY}"',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(text: str):
    """Neither by the error nor by its cause, which a traceback would print; see `fault`."""
    fault(config_with(text))


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_written_as_the_name_of_a_secret_is_not_repeated(kind: str):
    """`key = "env:<the key itself>"` is an easy mistake; the error names only the key of the table."""
    text = f'[[caller]]\nname = "a"\nkey = "{kind}:{KEY}"'
    with pytest.raises(ConfigError) as caught:
        build(config_with("\n" + text))
    whole = "".join(traceback.format_exception(caught.value))

    assert str(caught.value).startswith("caller[0].key: the ")
    assert KEY not in whole


AMBIGUOUS = {
    "a name that is a team": [("search", ""), ("batch", "search")],
    "a name that is a later team": [("batch", "search"), ("search", "")],
    "a name that is the team of two": [("a", "search"), ("b", "search"), ("search", "")],
}


@pytest.mark.parametrize("callers", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_caller_without_a_team_must_not_have_the_name_of_a_team(callers: list[tuple[str, str]]):
    """It would share cached answers and budgets with that team."""
    message = fault(config_with() | {"caller": caller_tables(callers)})

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
    """A caller with a team belongs to that team, even if its own name is that of another."""
    built = build(config_with() | {"caller": caller_tables(callers)}).callers

    assert [(caller.name, caller.team) for caller in built] == [(name, team or name) for name, team in callers]


def caller_tables(callers: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"name": name, "key_sha256": f"{index:064x}"} | ({"team": team} if team else {})
        for index, (name, team) in enumerate(callers)
    ]


@pytest.mark.parametrize(
    ("teams", "setting", "unknown_ids"),
    [
        ([], None, "allow"),
        (["search"], None, "allow"),
        (["search", "search"], None, "allow"),
        (["search", "ads"], None, "deny"),
        (["", ""], None, "deny"),  # a caller without a team is one of its own
        (["search", "ads"], "allow", "allow"),
        (["search"], "deny", "deny"),
    ],
)
def test_unknown_ids_are_refused_where_there_are_several_teams(teams: list[str], setting: str | None, unknown_ids: str):
    """A single team has nothing to find out about others."""
    digests = [f"{number:064x}" for number in range(1, 3)]
    callers = [
        {"name": f"caller-{number}", "key_sha256": digests[number], **({"team": team} if team else {})}
        for number, team in enumerate(teams)
    ]
    state = {} if setting is None else {"unknown_ids": setting}

    assert build({**config_with(), "caller": callers, "state": state}).unknown_ids == unknown_ids
