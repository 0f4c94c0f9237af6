"""`headgate cache` on the command line."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.__main__ import main
from tests.conftest import CANNED, StartGateway, tables_for
from tests.upstream import FakeUpstream

ASKED = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}


@pytest.fixture(autouse=True)
def _cache_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the secret that some configs name."""
    monkeypatch.setenv("CACHE_SECRET", "a secret of at least 32 characters")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config that sends every model to a recording."""
    file = tmp_path / "headgate.toml"
    file.write_text(CANNED)
    return file


def explain(config: Path, first: Any, second: Any) -> int:
    """Run `cache explain` on two requests and return its exit status."""
    files = []
    for name, request in (("first.json", first), ("second.json", second)):
        files.append(config.parent / name)
        files[-1].write_bytes(request if isinstance(request, bytes) else orjson.dumps(request))
    return main(["cache", "explain", *map(str, files), "--config", str(config)])


def test_explain_names_what_does_not_count(config: Path, capsys):
    """Two requests that share an entry although they are not the same."""
    headers = {"User-Agent": "x", "X-Stainless-OS": "y"}
    second = {"body": ASKED | {"stream": True, "user": "u", "store": True}, "headers": headers}

    assert explain(config, ASKED, second) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Both requests share an entry.",
        "header user-agent: differs; it says who asks, and for whom, so it is not in the key",
        "header x-stainless-os: differs; it says how the answer is delivered, so it is not in the key",
        "field store: differs; it has an effect beside the answer, so it is not in the key",
        "field stream: differs; it says how the answer is delivered, so it is not in the key",
        "field user: differs; it says who asks, and for whom, so it is not in the key",
    ]


def test_explain_names_every_part_that_differs(config: Path, capsys):
    """The team, the route, headers, parameters and fields."""
    with config.open("a") as file:
        file.write('[[route]]\nname = "other"\nmodel = "z"\nbackend = "canned"\n')
    text = config.read_text().replace('model = "*"', 'model = "m"')
    config.write_text(text)
    second = {
        "body": ASKED | {"model": "z", "store": False, "new_field": 1}, "headers": {"OpenAI-Beta": "b"},
        "query": "include=a", "team": "t",
    }  # fmt: skip

    assert explain(config, ASKED, second) == 1
    assert capsys.readouterr().out.splitlines() == [
        "The requests do not share an entry.",
        "team: differs",
        "route: differs",
        "header openai-beta: differs; it changes the answer",
        "query include: differs; it changes the answer",
        "field model: differs; it changes the answer",
        "field new_field: differs; it changes the answer",
        "field store: differs; it has an effect beside the answer",
    ]


def test_equal_requests_have_no_differences(config: Path, capsys):
    """Whatever the order of their fields."""
    assert explain(config, ASKED, dict(reversed(ASKED.items()))) == 0
    assert capsys.readouterr().out == "Both requests share an entry.\n"


@pytest.mark.parametrize("request_in_file", [b"", b"[]", b"3", b'{"body": {}, "headers": 3}', {"model": 7}])
def test_what_is_not_a_request_is_refused(config: Path, request_in_file: Any, capsys):
    """With the name of the file."""
    assert explain(config, ASKED, request_in_file) == 2
    assert "second.json" in capsys.readouterr().err


def test_a_file_that_does_not_exist_is_refused(config: Path, capsys):
    """With its name."""
    assert main(["cache", "explain", str(config), "missing.json", "--config", str(config)]) == 2
    assert capsys.readouterr().err


async def status_of(http, address: str, team: str) -> str:
    """Return what the cache did for one call of a team."""
    headers = {"Authorization": f"Bearer key-of-{team}"}
    async with http.post(f"{address}/v1/responses", json=ASKED, headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["Cache-Status"].split(";")[1].strip()


@pytest.mark.parametrize("secret", [None, "env:CACHE_SECRET"])
async def test_forget_makes_a_team_s_entries_unreadable(
    secret: str | None, start_gateway: StartGateway, http, upstream: FakeUpstream, tmp_path: Path
):  # fmt: skip
    """While gateways run, for that team only."""
    cache = {"use": "sqlite", "path": str(tmp_path / "cache.db"), "timeout_ms": 20_000}
    cache |= {} if secret is None else {"secret": secret}
    callers = [
        {"name": name, "team": name, "key_sha256": hashlib.sha256(f"key-of-{name}".encode()).hexdigest()}
        for name in ("red", "blue")
    ]
    address = await start_gateway(tables_for(upstream, policy=[], cache=cache, caller=callers))
    for team in ("red", "blue"):
        await status_of(http, address, team)
    config = tmp_path / "headgate.toml"
    lines = "\n".join(f"{name} = {orjson.dumps(value).decode()}" for name, value in cache.items())
    config.write_text(f"{CANNED}[cache]\n{lines}\n")
    code = await asyncio.to_thread(main, ["cache", "forget", "--team", "red", "--config", str(config)])

    assert code == 0
    assert [await status_of(http, address, team) for team in ("red", "blue", "red")] == ["fwd=uri-miss", "hit", "hit"]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("", "cache: this config has no [cache]"),
        ('[cache]\nuse = "memory"\n', 'cache.use: "memory" is private'),
        ('[cache]\nuse = "sqlite"\npath = "/nowhere/at/all"\n', "cache: "),
        ('[cache]\nuse = "redis"\nurl = "unix:///nowhere"\n', "cache: "),
    ],
)
def test_forget_needs_a_cache_that_it_can_reach(config: Path, table: str, fault: str, capsys):
    """With a message that begins with the key at fault."""
    config.write_text(CANNED + table)

    assert main(["cache", "forget", "--team", "red", "--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith(fault)


@pytest.mark.parametrize("secret", [None, "env:CACHE_SECRET"])
async def test_purge_removes_what_it_names_and_stats_counts_the_rest(
    secret: str | None, start_gateway: StartGateway, http, upstream: FakeUpstream, tmp_path: Path, capsys
):  # fmt: skip
    """By team, model and prompt_cache_key, sealed or not; also of a team that is in no config any more."""
    cache = {"use": "sqlite", "path": str(tmp_path / "cache.db"), "timeout_ms": 20_000}
    cache |= {} if secret is None else {"secret": secret}
    tables = {"cache": cache, "caller": [
        {"name": name, "team": name, "key_sha256": hashlib.sha256(f"key-of-{name}".encode()).hexdigest()}
        for name in ("red", "blue", "gone")
    ]}  # fmt: skip
    address = await start_gateway(tables_for(upstream, policy=[], **tables))
    for team in ("red", "blue", "gone"):
        for changes in ({}, {"model": "n"}, {"prompt_cache_key": "l"}):
            headers = {"Authorization": f"Bearer key-of-{team}"}
            async with http.post(f"{address}/v1/responses", json=ASKED | changes, headers=headers) as answer:
                assert answer.status == 200
    config = tmp_path / "headgate.toml"
    lines = [f"{name} = {orjson.dumps(value).decode()}" for name, value in cache.items()]
    people = [
        "[[caller]]\n" + "\n".join(f"{name} = {orjson.dumps(value).decode()}" for name, value in caller.items())
        for caller in tables["caller"][:2]
    ]
    config.write_text("\n".join([CANNED, "[cache]", *lines, *people]))
    found = []
    for arguments in (["stats"], ["purge", "--team", "red", "--model", "m", "--prompt-cache-key", "k"], ["stats"],
                      ["purge", "--model", "n"], ["stats"]):  # fmt: skip
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["cache", *arguments, "--config", str(config)]) == 0
        found.append([line.rpartition(",")[0] or line for line in capsys.readouterr().out.splitlines()])

    head = "team, model, entries"
    assert found == [
        [head, "blue, m, 2", "blue, n, 1", "gone, m, 2", "gone, n, 1", "red, m, 2", "red, n, 1"],
        ["Entries removed: 1."],
        [head, "blue, m, 2", "blue, n, 1", "gone, m, 2", "gone, n, 1", "red, m, 1", "red, n, 1"],
        ["Entries removed: 3."],
        [head, "blue, m, 2", "gone, m, 2", "red, m, 1"],
    ]


def test_purge_needs_something_to_remove(config: Path, capsys):
    """Not everything by mistake."""
    assert main(["cache", "purge", "--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith("cache purge: ")
