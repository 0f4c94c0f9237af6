"""Faults and warnings that concern several tables of a config."""

from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.config.build import ConfigError, build
from tests.conftest import DATA

CANNED = {"use": "replay", "name": "canned", "path": str(DATA / "canonical.sse")}
CALLERS = [
    {"name": "search-app", "team": "search", "key_sha256": "1" * 64},
    {"name": "batch", "key_sha256": "2" * 64},
]
RULE = {"use": "output_tokens", "max": 100}


def config(**tables) -> dict[str, object]:
    return {"backend": [CANNED], "route": [{"model": "*", "backend": "canned"}], "caller": CALLERS} | tables


def routes(*models: str) -> list[dict[str, str]]:
    return [{"model": model, "backend": "canned"} for model in models]


def faults(**tables) -> list[str]:
    """Return the faults of a config, one line each; none if it is correct."""
    try:
        build(config(**tables))
    except ConfigError as error:
        return str(error).splitlines()
    return []


def warnings(**tables) -> tuple[str, ...]:
    return build(config(**tables)).warnings


@pytest.mark.parametrize("globs", [["*"], ["search-app"], ["search-*", "bat?h"], ["[sb]*"]])
def test_a_selector_that_matches_a_caller_is_correct(globs: list[str]):
    """Wildcards count."""
    assert faults(policy=[RULE | {"callers": globs}]) == []


def test_a_selector_that_matches_no_caller_is_a_fault():
    """A misspelt name would lift the rule for the caller that was meant."""
    policies = [RULE, RULE | {"callers": ["serach-app", "batch", "team-*"]}]

    assert faults(policy=policies) == [
        "policy[1].callers: 'serach-app' matches no [[caller]]; did you mean search-app?",
        "policy[1].callers: 'team-*' matches no [[caller]]; known: search-app, batch",
    ]


def test_an_empty_selector_is_a_fault():
    """It may be meant as all."""
    assert faults(policy=[RULE | {"callers": []}]) == [
        "policy[0].callers: it is empty, so that the policy applies to no call; leave it out for all"
    ]


def test_a_policy_that_is_off_may_select_anyone():
    """It applies to no call anyway."""
    assert faults(policy=[RULE | {"mode": "off", "callers": ["nobody"]}, RULE | {"mode": "off", "callers": []}]) == []


def test_without_callers_only_the_anonymous_one_can_be_selected():
    """Its name in logs is `anybody`."""
    assert faults(caller=[], policy=[RULE | {"callers": ["anybody"]}]) == []
    assert faults(caller=[], policy=[RULE | {"callers": ["batch"]}]) == [
        "policy[0].callers: 'batch' matches no [[caller]]; known: anybody"
    ]


def test_known_callers_are_listed_up_to_a_limit():
    """There may be thousands."""
    many = [{"name": f"app-{number}", "key_sha256": f"{number:064x}"} for number in range(1000)]
    (fault,) = faults(caller=many, policy=[RULE | {"callers": ["batch"]}])

    assert fault.endswith("known: app-0, app-1, app-2, app-3, app-4, ...")


@pytest.mark.parametrize(("first", "second"), [("search", "ads"), ("search", ""), ("", "search")])
def test_one_caller_in_two_teams_is_a_fault(first: str, second: str):
    """Selectors, logs and audit name the caller only, whatever its team."""
    twice = [{"name": "app", "team": team, "key_sha256": sha * 64} for team, sha in ((first, "3"), (second, "4"))]

    assert faults(caller=twice) == [
        "caller[1].team: 'app' is in another team in caller[0]; a caller has one team, and may have several keys"
    ]


def test_one_caller_may_have_several_keys():
    """While a key is replaced."""
    assert faults(caller=[{"name": "app", "team": "a", "key_sha256": sha * 64} for sha in "34"]) == []


def test_two_default_routes_are_a_fault():
    """A call without a model has one route."""
    listed = [route | {"default": True} for route in routes("a", "b")]

    assert faults(route=listed) == ["route[1].default: route[0] is the default already; keep one"]
    assert faults(route=[listed[0], *routes("b")]) == []


def test_a_default_route_with_wildcards_needs_a_backend_that_answers_without_a_model():
    """Only a server of prompt templates does."""
    cloud = {"use": "upstream", "name": "cloud", "base_url": "https://api.example/v1"}
    route = {"model": "m*", "default": True}

    assert faults(route=[route | {"backend": "canned"}]) == [
        "route[0].default: 'canned' needs a model's name, and 'm*' has wildcards"
    ]
    assert faults(backend=[CANNED, cloud], route=[route | {"backend": "cloud"}]) == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("*", "gpt-5"), ("gpt-*", "gpt-5*"), ("gpt-5", "gpt-5"), ("gpt-?", "gpt-5"), ("*", "*"), ("*-pro", "gpt-*-pro")],
)
def test_a_route_that_no_call_reaches_is_a_fault(earlier: str, later: str):
    """Its calls go to another backend than the file says."""
    assert faults(route=routes("demo", earlier, later)) == [
        f"route[2].model: '{later}' is never reached, because route[1] has '{earlier}'; put it before that one"
    ]


@pytest.mark.parametrize(
    ("earlier", "later"), [("gpt-5", "*"), ("gpt-5*", "gpt-*"), ("gpt-?", "gpt-5*"), ("*-pro", "gpt-*"), ("?*", "*")]
)
def test_a_route_that_some_calls_reach_is_correct(earlier: str, later: str):
    """The usual order: names first, wildcards last."""
    assert faults(route=routes(earlier, later)) == []


@pytest.mark.parametrize("path", ["/responses", "/responses/", "/chat/completions", "/models"])
def test_the_address_of_one_endpoint_is_a_fault(path: str):
    """Every call would go to `.../responses/responses`."""
    openai = {"use": "upstream", "name": "openai", "base_url": f"https://example.com/v1{path}"}
    (fault,) = faults(backend=[CANNED, openai])

    assert fault.startswith(f"backend[1].base_url: it ends in {path.rstrip('/')}, ")


def test_all_faults_of_a_file_are_reported_at_once():
    """Whichever table they are in; each has the path of its key."""
    found = faults(
        server={"prot": 1},
        policy=[RULE | {"max": 0}, {"use": "nothing"}, {"use": "size"}],
        backend=[CANNED | {"pace": 1}, {"name": "x"}],
        state={"use": "memory", "size": 1},
        cache={"use": "memory", "ttl_s": -1},
    )

    assert [fault.partition(":")[0] for fault in found] == [
        "server.prot", "cache.ttl_s", "policy[0].max", "policy[1].use", "policy[2]", "state.size", "backend[0].pace",
        "backend[1].use",
    ]  # fmt: skip


def test_what_only_follows_from_a_fault_is_not_reported():
    """A misspelt key counts as left out: that it is missing is no fault of its own, nor what has no name without it."""
    nameless = {"use": "replay", "nmae": "canned", "path": "x"}
    found = faults(
        backend=[nameless],
        route=[{"model": "*", "bakend": "canned"}, {"model": "m", "backend": "canned"}],
        caller=[{"name": "a", "kye": "env:X"}, {"name": "a", "team": 7, "key_sha256": "1" * 64}],
        admin={"port": "x"},
        relay=[{"path": "/v1/files", "backend": "canned"}],
    )

    assert [fault.partition(":")[0] for fault in found] == [
        "admin.port", "caller[0].kye", "caller[1].team", "route[0].bakend", "backend[0].name", "backend[0].nmae",
        "route[1].model",
    ]  # fmt: skip


def test_faults_between_tables_are_reported_with_those_within():
    """Of tables that could be read."""
    found = faults(
        server={"host": "0.0.0.0"}, caller=[], policy=[RULE | {"max": 0}], route=routes("*", "a"), state={"use": "x"}
    )

    assert [fault.partition(":")[0] for fault in found] == [
        "policy[0].max",
        "state.use",
        "route[1].model",
        "server.host",
    ]


@pytest.mark.parametrize("name", ["models", "include", "service_tier", "retention"])
def test_a_policy_without_any_effect_is_a_warning(name: str):
    """It has no setting, or only those that allow everything."""
    assert warnings(policy=[RULE, {"use": name}]) == (f"policy[1]: {name} has no effect with these settings",)
    assert warnings(policy=[{"use": name, "mode": "off"}]) == ()


def test_a_policy_that_refuses_everything_is_a_warning():
    """An empty list allows nothing; it may be meant as no limit."""
    assert warnings(policy=[{"use": "models", "allow": []}]) == (
        "policy[0]: models refuses every call that it applies to",
    )
    assert warnings(policy=[{"use": "models", "allow": [], "mode": "off"}]) == ()


def test_a_policy_with_an_effect_is_no_warning():
    """One setting is enough."""
    policies = [
        {"use": "models", "deny": ["a"]}, {"use": "models", "aliases": {"a": "b"}}, {"use": "include", "allow": []},
        {"use": "service_tier", "default": "flex"}, {"use": "retention", "background": "deny"},
    ]  # fmt: skip

    assert warnings(policy=policies) == ()


def test_a_policy_for_models_that_no_route_serves_is_a_warning():
    """Names that a policy replaces, and those that replace them, are known."""
    policies = [
        {"use": "models", "aliases": {"fast": "gpt-5-mini"}},
        RULE | {"models": ["gpt-*", "gtp-5", "fast", "demo", "o?"]},
    ]

    assert warnings(policy=policies, route=routes("demo", "gpt-5*")) == (
        "policy[1].models: 'gtp-5' matches no model of a [[route]]",
        "policy[1].models: 'o?' matches no model of a [[route]]",
    )


def test_a_limit_on_bodies_beyond_the_memory_is_a_warning():
    """Bodies between the two would get 503, and the config seems to allow them."""
    sizes = {"max_body_bytes": 1_000_001, "memory_bytes": 1_000_000}

    (warning,) = warnings(server=sizes)

    assert warning.startswith("server.max_body_bytes: a body of more than 1000000 bytes gets 503")
    assert warnings(server={**sizes, "max_body_bytes": 1_000_000}) == ()


def test_several_processes_divide_the_memory():
    """Each has its part, which a body may exceed although all of the memory would hold it."""
    server = {"max_body_bytes": 600_000, "memory_bytes": 1_000_000, "workers": 2}

    (warning,) = warnings(server=server, state={"use": "redis", "url": "redis://localhost"})

    assert "more than 500000 bytes gets 503, as server.memory_bytes leaves a process no more" in warning


def test_check_prints_warnings_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They are on stderr, the path of a call is on stdout."""
    path = tmp_path / "headgate.toml"
    path.write_text(
        f'[[policy]]\nuse = "models"\n[[backend]]\nuse = "replay"\nname = "canned"\npath = "{CANNED["path"]}"\n'
        '[[route]]\nmodel = "*"\nbackend = "canned"\n'
    )
    code = main(["check", "--config", str(path)])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, f"warning: {path}:1:3: policy[0]: models has no effect with these settings\n")
    assert "route     * -> canned (replay)" in printed.out


async def test_a_gateway_logs_warnings_when_it_starts(start_gateway, logged):
    """Someone may not have run `headgate check`."""
    await start_gateway({"policy": [{"use": "models"}], "backend": [CANNED], "route": routes("*")})

    assert [line["reason"] for line in logged if line["event"] == "config.warned"] == [
        "policy[0]: models has no effect with these settings"
    ]
