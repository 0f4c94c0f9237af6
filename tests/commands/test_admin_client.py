"""Commands ask a gateway that runs by its admin API, and say so; without one they work on the state themselves."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.commands import audit, cache, identity, key, reload, usage
from proxy.config.validation import ConfigError
from tests.conftest import CANNED
from tests.operators import CALLERS, KEYS, Console, console_tables, start_console
from tests.redis_server import free_port
from tests.timeouts import pause
from tests.upstream import FakeUpstream

POLICIES = [{"use": "metadata_limits"}, {"use": "safety_identifier"}]
READ = (
    ["key", "list"], ["key", "list", "--format", "json"], ["usage", "--by", "team,caller"],
    ["usage", "--by", "hour,project", "--format", "csv", "--where", "team=search", "--tz", "Europe/Berlin"],
    ["usage", "--format", "focus"], ["usage", "--format", "json"], ["cache", "stats"], ["block", "--list"],
    ["audit", "search"], ["audit", "search", "--decision", "refused", "--limit", "1"], ["whois", "person"],
)  # fmt: skip


class Commands:
    """Runs commands with the config of a gateway that runs."""

    def __init__(self, console: Console, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.console, self.config, self._capsys = console, config, capsys

    async def run(self, *arguments: str, config: Path | None = None) -> Any:
        """Return what a command prints on stdout and stderr. Raises ConfigError."""
        config = self.config if config is None else config
        place = 2 if arguments[0] in ("key", "cache", "audit") else 1  # an identifier stands after "--"
        options = parse(*arguments[:place], "--config", str(config), *arguments[place:])
        self._capsys.readouterr()
        await asyncio.to_thread(options.run, options)
        return self._capsys.readouterr()


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for subject in (key, usage, cache, identity, audit, reload):
        subject.add_to(commands)
    return parser.parse_args(arguments)


def write_config(path: Path, port: int, folder: Path) -> Path:
    """Write the config that a command reads of the gateway of `console_tables`."""
    callers = "".join(
        f'[[caller]]\nname = "{name}"\nteam = "{team}"\nkey = "env:TEST_{name.upper()}_KEY"\n'
        for name, team in CALLERS.items()
    )
    path.write_text(f"""
[admin]
port = {port}
[[admin.key]]
name = "owner"
role = "owner"
key = "env:TEST_OWNER_KEY"
[keys]
[state]
use = "sqlite"
path = "{folder}/state"
[cache]
use = "sqlite"
path = "{folder}/cache"
[usage]
metadata = ["project"]
[audit]
path = "{folder}/audit.jsonl"
[[policy]]
use = "safety_identifier"
{callers}{CANNED}""")
    return path


@pytest.fixture
def start(start_gateway, logged, http) -> Callable[[dict[str, Any]], Awaitable[Console]]:
    return lambda tables: start_console(start_gateway, tables, logged, http)


@pytest.fixture
async def commands(upstream: FakeUpstream, start, tmp_path, monkeypatch, capsys) -> Commands:
    folder = tmp_path / "files"
    folder.mkdir()
    cached = {"use": "sqlite", "path": str(folder / "cache")}
    console = await start(console_tables(upstream, folder, monkeypatch, cache=cached, policy=POLICIES))
    return Commands(console, write_config(tmp_path / "headgate.toml", port_of(console), folder), capsys)


def port_of(console: Console) -> int:
    return int(console.admin.rpartition(":")[2])


async def test_a_key_lives_by_the_gateway(commands: Commands):
    """Its secret alone is on stdout; the audit names the operator, not the user of the command."""
    order = ("--team", "search", "--name", "eve", "--expires", "never", "--tag", "a=b")
    made = await commands.run("key", "create", *order)
    secret = made.out.strip()
    key_id = made.err.splitlines()[-1].partition(" ")[0]
    while (await commands.console.call_with(secret))[0] != 200:
        await pause()
    rotated = await commands.run("key", "rotate", key_id, "--overlap", "1h")
    revoked = await commands.run("key", "revoke", key_id)
    listed = orjson.loads((await commands.run("key", "list", "--format", "json")).out)
    _, found = await commands.console.ask("GET", "/audit?operator=owner")

    assert f"Asking the gateway at {commands.console.admin}" in made.err
    assert "eve (team search), expires: never" in made.err
    assert f"{key_id}, the old key, is valid until" in rotated.err
    assert revoked.out == f"{key_id} is revoked.\n"
    assert {row["status"]: row["tags"] for row in listed} == {"revoked": {"a": "b"}, "valid": {"a": "b"}}
    assert [entry["event"] for entry in found["entries"]] == ["key.revoked", "key.rotated", "key.created"]


async def test_the_same_is_printed_with_and_without_a_gateway(commands: Commands):
    """What is read is the same: keys, usage in each format, the cache, what is blocked, the audit."""
    console = commands.console
    await commands.run("key", "create", "--team", "search", "--name", "eve")
    for caller, project in (("ada", "x"), ("ben", "y"), ("cleo", "x")):
        await console.call(caller, metadata={"project": project}, input=f"{caller}", prompt_cache_key="k")
    await console.call("cleo", metadata={"k" * 65: "v"})
    await commands.run("block", "--", "person")
    while (await console.ask("GET", "/spend"))[1]["total"]["calls"] < 4:
        await pause()
    while not (await console.ask("GET", "/audit?decision=refused"))[1]["entries"]:  # a thread writes them
        await pause()
    for arguments in READ:
        asked, direct = await commands.run(*arguments), await commands.run(*arguments, "--direct")

        assert asked.out == direct.out, arguments
        assert ("Asking the gateway" in asked.err, "gateway" in direct.err) == (True, False)
        assert asked.out.count("\n") >= 1


async def test_the_gateway_changes_what_is_asked_for(commands: Commands):
    """Entries of the cache are removed, and identifiers are blocked and let pass again."""
    for caller in ("ada", "cleo"):
        await commands.console.call(caller, input="same", prompt_cache_key="k")
    purged = await commands.run("cache", "purge", "--team", "billing")
    await commands.run("cache", "forget", "--team", "search")
    for caller in ("ada", "cleo"):
        await commands.console.call(caller, input="same", prompt_cache_key="k")
    _, report = await commands.console.ask("GET", "/cache")
    blocked = await commands.run("block", "--", "person")
    refused, _ = await commands.console.call("ada", safety_identifier="person", input="other")
    passed = await commands.run("unblock", "--", "person")
    again = await commands.run("unblock", "--", "person")

    assert (purged.out, blocked.out, passed.out) == (
        "Entries removed: 1.\n", "person is blocked.\n", "person is no longer blocked.\n",
    )  # fmt: skip
    assert (report["hits"], refused, "not blocked" in again.out) == (0, 400, True)


@pytest.mark.parametrize(
    ("key", "message"), [("wrong-key-0123456789-0123456789-0123456789", "unknown_key"), (KEYS["viewer"], "role_not_")]
)
async def test_a_command_that_is_refused_is_not_done_otherwise(commands: Commands, monkeypatch, key, message):
    """Although it could write to the state itself."""
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", key)
    with pytest.raises(ConfigError, match=f"{message}.*\n.*--admin-key"):
        await commands.run("key", "create", "--team", "search", "--name", "eve")
    monkeypatch.delenv("HEADGATE_ADMIN_KEY")

    assert (await commands.run("key", "list", "--format", "json")).out == "[]\n"


@pytest.mark.parametrize(
    ("command", "advice"),
    [(("key", "list"), "; or ask none: --direct."), (("reload",), "; or send it SIGHUP instead.")],
)
async def test_a_refusal_says_what_else_the_command_can_do(commands: Commands, monkeypatch, command, advice):
    """Only commands that work on the store have --direct."""
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", "wrong")
    with pytest.raises(ConfigError) as refused:
        await commands.run(*command)

    assert str(refused.value).endswith(advice)


async def test_a_problem_is_shown_in_its_words(commands: Commands):
    """With what is wrong in each field."""
    with pytest.raises(ConfigError, match=r"There is no key with this id\. \(unknown_key\)"):
        await commands.run("key", "revoke", "key/../0")
    with pytest.raises(ConfigError, match="color"):
        await commands.run("usage", "--by", "color")


async def test_without_a_gateway_the_state_is_used(commands: Commands, tmp_path):
    """It is said; a gateway that is named with --url has to be there."""
    closed = write_config(tmp_path / "closed.toml", free_port(), tmp_path / "files")
    listed = await commands.run("key", "list", config=closed)
    assert ("No gateway answers at" in listed.err, "id" in listed.out) == (True, True)
    for url in (f"http://127.0.0.1:{free_port()}", "127.0.0.1:1", "http://h:x"):
        with pytest.raises(ConfigError):
            await commands.run("key", "list", "--url", url)


async def test_a_listener_that_lets_no_operator_in_is_not_asked(commands: Commands):
    """As in a container whose config has no [[admin.key]]: the first key is made without the gateway, which is said."""
    text = commands.config.read_text()
    head, _, rest = text.partition("[[admin.key]]")
    commands.config.write_text(f'{head}host = "0.0.0.0"\n[keys]{rest.partition("[keys]")[2]}')
    made = await commands.run("key", "create", "--team", "search", "--name", "eve")

    assert made.out.startswith("hg_")
    assert "lets no operator in" in made.err


async def test_a_gateway_is_asked_without_a_config(commands: Commands, monkeypatch):
    """By its address and a key alone, which is in a variable of any name."""
    monkeypatch.setenv("MY_OWNER_KEY", KEYS["owner"])
    named = ["key", "list", "--url", commands.console.admin]
    options = parse(*named, "--admin-key", "env:MY_OWNER_KEY")

    assert await asyncio.to_thread(options.run, options) == 0
    for wrong, message in ((parse("key", "list"), "--config"), (parse(*named, "--admin-key", "plain"), "--admin-key")):
        with pytest.raises(ConfigError, match=message):
            await asyncio.to_thread(wrong.run, wrong)


async def test_another_gateway_is_not_taken_for_it(commands: Commands, tmp_path, upstream):
    """One with another state at the address of the config, or a server of another kind."""
    other = write_config(tmp_path / "other.toml", port_of(commands.console), tmp_path)
    with pytest.raises(ConfigError, match=r"another \[state\]"):
        await commands.run("key", "list", config=other)

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    upstream.answer = answer
    strange = write_config(tmp_path / "strange.toml", int(upstream.address.rpartition(":")[2]), tmp_path)
    with pytest.raises(ConfigError, match="no Headgate"):
        await commands.run("key", "list", config=strange)


async def test_a_state_in_memory_is_changed_by_its_gateway(upstream, start, tmp_path, monkeypatch, capsys):
    """No other process reaches it."""
    tables = console_tables(upstream, tmp_path, monkeypatch, state={"use": "memory"}, policy=POLICIES)
    tables.pop("keys")
    console = await start(tables)
    config = write_config(tmp_path / "memory.toml", port_of(console), tmp_path)
    text = config.read_text().replace(f'"sqlite"\npath = "{tmp_path}/state"', '"memory"').replace("[keys]\n", "")
    config.write_text(text)
    commands = Commands(console, config, capsys)
    await commands.run("block", "--", "person")

    assert "person" in (await commands.run("block", "--list")).out
    with pytest.raises(ConfigError, match="private to the serving process"):
        await commands.run("block", "--list", "--direct")
