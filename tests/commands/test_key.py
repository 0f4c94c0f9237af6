"""`headgate key` while gateways are running that share their state."""

import argparse
import asyncio
import getpass
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.__main__ import main
from proxy.commands import key
from proxy.config.build import build
from proxy.identity.key_book import JOURNAL
from tests.configs import config_with, fault
from tests.conftest import CANNED, StartGateway, tables_for
from tests.sockets import calling
from tests.upstream import FakeUpstream

POLICIES = [{"use": "models", "aliases": {"fast": "gpt-5"}}]
REFUSED, PASSED = (401, "invalid_api_key"), (200, None)


class Keys:
    """Runs `headgate key`, and asks two gateways with the same state."""

    def __init__(self, config: Path, gateways: list[str], http: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.config, self.gateways, self.http, self.capsys = config, gateways, http, capsys

    async def run(self, verb: str, *arguments: str) -> str:
        """Return what a command prints, which succeeds. The log stays as it is, unlike with `main`."""
        parser = argparse.ArgumentParser()
        key.add_to(parser.add_subparsers())
        options = parser.parse_args(["key", verb, "--config", str(self.config), *arguments])
        self.capsys.readouterr()

        assert await asyncio.to_thread(options.run, options) == 0
        return self.capsys.readouterr().out.strip()

    async def ask(self, gateway: str, headers: dict[str, str], **body: Any) -> tuple[int, str | None]:
        async with self.http.post(
            f"{gateway}/v1/responses", json={"model": "gpt-5", **body}, headers=headers
        ) as answer:
            return answer.status, ((await answer.json()).get("error") or {}).get("code")

    async def settle(self, secret: str, outcome: tuple[int, str | None]) -> None:
        """Wait until all gateways answer a key like this."""
        for gateway in self.gateways:
            async with asyncio.timeout(10):
                while await self.ask(gateway, {"api-key": secret}) != outcome:  # noqa: ASYNC110  it follows in a task
                    await asyncio.sleep(0.02)

    async def listed(self) -> list[dict[str, Any]]:
        return orjson.loads(await self.run("list", "--format", "json"))


@pytest.fixture(params=["sqlite", "redis"])
async def keys(request, tmp_path: Path, start_gateway: StartGateway, upstream: FakeUpstream, http, capsys) -> Keys:
    """Two gateways and the command, with one state."""
    state: dict[str, Any] = {"use": "sqlite", "path": str(tmp_path / "state.db")}
    if request.param == "redis":
        state = {"use": "redis", "url": request.getfixturevalue("redis_server").url, "timeout_ms": 30_000}
    opened = build({**config_with(), "state": state}).state
    await opened.start()
    await opened.delete(JOURNAL)  # other tests have the same Redis
    await opened.close()
    lines = "\n".join(f"{name} = {value!r}" for name, value in state.items())
    config = tmp_path / "headgate.toml"
    config.write_text(f"[keys]\n[audit]\npath = '{tmp_path}/audit.jsonl'\n[state]\n{lines}\n{CANNED}")
    tables = tables_for(upstream, state=state, keys={"refresh_s": 0.05}, policy=POLICIES)
    return Keys(config, [await start_gateway(tables), await start_gateway(tables)], http, capsys)


async def test_a_key_lives_from_its_creation_to_its_end(keys: Keys, tmp_path: Path, logged):
    """On every gateway, in each of the headers; rotated with an overlap, and revoked."""
    first = await keys.run("create", "--team", "search", "--name", "ada", "--tag", "project=x", "--tag", "stage=test")
    await keys.settle(first, PASSED)
    headers = [{"Authorization": f"Bearer {first}"}, {"api-key": first}, {"x-api-key": first}]

    assert [await keys.ask(keys.gateways[0], each) for each in headers] == [PASSED] * 3
    (row,) = await keys.listed()
    line = [line for line in logged if line["event"] == "request.finished"][-1]
    assert [line[name] for name in ("caller", "team", "key_id", "tags")] == ["ada", "search", row["id"], "project=x,stage=test"]  # fmt: skip

    second = await keys.run("rotate", row["id"], "--overlap", "24h")
    await keys.settle(second, PASSED)
    assert await keys.ask(keys.gateways[1], {"api-key": first}) == PASSED
    await keys.run("revoke", row["id"])
    await keys.settle(first, REFUSED)
    assert await keys.ask(keys.gateways[0], {"api-key": second}) == PASSED
    assert sorted((each["status"], each["tags"]["project"]) for each in await keys.listed()) == [("revoked", "x"), ("valid", "x")]  # fmt: skip
    written = [orjson.loads(each) for each in (tmp_path / "audit.operator.jsonl").read_bytes().splitlines()]
    assert [(each["event"], each["operator"], each["key_id"]) for each in written] == [
        (event, getpass.getuser(), row["id"]) for event in ("key.created", "key.rotated", "key.revoked")
    ]  # fmt: skip
    assert first not in str(written) + str(logged) + keys.config.read_text()


async def test_a_key_may_name_its_models_only(keys: Keys):
    """In calls, after aliases, and in the list of models; in the words of the policy `models`."""
    secret = await keys.run("create", "--team", "search", "--name", "ben", "--models", "gpt-?", "--models", "o3")
    await keys.settle(secret, PASSED)
    gateway, headers = keys.gateways[0], {"api-key": secret}
    outcomes = [await keys.ask(gateway, headers, **body) for body in (
        {"model": "o3"}, {"model": "fast"}, {"model": "claude"}, {"model": "claude", "stream": True},
        {"models": ["claude"]},
    )]  # fmt: skip
    async with keys.http.get(f"{gateway}/v1/models", headers=headers) as answer:
        listed = [model["id"] for model in (await answer.json())["data"]]
    async with calling(gateway, **headers) as caller:
        turn = await caller.ask(model="claude")

    assert outcomes == [PASSED, PASSED] + [(400, "models.not_allowed")] * 2 + [
        (400, "models.alternative_field"),
    ]  # fmt: skip
    assert (listed, turn["error"]["code"]) == (["fast"], "models.not_allowed")


async def test_a_connection_ends_with_its_key(keys: Keys, monkeypatch: pytest.MonkeyPatch):
    secret = await keys.run("create", "--team", "search", "--name", "ada")
    await keys.settle(secret, PASSED)
    async with calling(keys.gateways[0], **{"api-key": secret}) as caller:
        assert (await caller.ask())["type"] == "response.completed"
        await keys.run("revoke", (await keys.listed())[-1]["id"])
        await keys.settle(secret, REFUSED)
        refused = await caller.ask()

        assert await caller.closed() == 1008
    assert (refused["status"], refused["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--team", "search", "--name", ""], "has 1 to 128 printable characters"),
        (["create", "--team", "search", "--name", "ada", "--expires", "soon"], "'soon' is no duration"),
        (["create", "--team", "search", "--name", "ada", "--tag", "project"], "'project' is no tag"),
        (
            ["create", "--team", "search", "--name", "ada", "--tag", "a=1", "--tag", "a=2"],
            "each name may be given once",
        ),
        (["create", "--team", "search", "--name", "carol"], "'carol' is in the team 'shop'; a caller has one team"),
        (["create", "--team", "ben", "--name", "ada"], "'ben' is a caller without a team"),
        (["rotate", "key_000000000000"], "there is no key 'key_000000000000'"),
        (["revoke", "hg_"], "there is no key 'hg_'"),
    ],
)
def test_what_cannot_be_done_changes_nothing(tmp_path: Path, capsys, arguments: list[str], message: str):
    """It is exit status 2."""
    config = tmp_path / "headgate.toml"
    caller = f'[[caller]]\nname = "carol"\nteam = "shop"\nkey_sha256 = "{"0" * 64}"\n'
    caller += f'[[caller]]\nname = "ben"\nkey_sha256 = "{"1" * 64}"\n'
    config.write_text(f'[keys]\n[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n{caller}{CANNED}')
    try:
        status = main(["key", arguments[0], "--config", str(config), *arguments[1:]])
    except SystemExit as ended:
        status = ended.code
    error = capsys.readouterr().err

    assert status == 2
    assert message in error
    assert main(["key", "list", "--config", str(config), "--format", "json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_a_config_without_keys_issues_none(tmp_path: Path, capsys):
    """The message names the table; with it the state must be one that processes share."""
    config = tmp_path / "headgate.toml"
    config.write_text(f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n{CANNED}')

    assert main(["key", "list", "--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith("keys: this config has no [keys]")
    assert fault(config_with("[keys]\n")).startswith('keys: "memory" is private to one process')


def test_a_rotation_says_what_becomes_of_the_old_key(tmp_path: Path, capsys):
    """Without an overlap it ends at once. The new key alone is on stdout."""
    config = tmp_path / "headgate.toml"
    config.write_text(f'[keys]\n[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n{CANNED}')

    def run(*arguments: str) -> tuple[str, str]:
        assert main(["key", arguments[0], "--config", str(config), *arguments[1:]]) == 0
        out, err = capsys.readouterr()
        return out, err.splitlines()[-1] if err else ""

    run("create", "--team", "search", "--name", "ada")
    ids = [orjson.loads(run("list", "--format", "json")[0])[0]["id"]]
    secret, kept = run("rotate", ids[0], "--overlap", "24h")
    ids.append(next(row["id"] for row in orjson.loads(run("list", "--format", "json")[0]) if row["id"] != ids[0]))
    _, ended = run("rotate", ids[1])

    assert len(secret.splitlines()) == 1
    assert kept.startswith(f"{ids[0]}, the old key, is valid until 20")
    assert ended.startswith(f"{ids[1]}, the old key, has ended: calls with it get 401")
    assert {row["id"]: row["status"] for row in orjson.loads(run("list", "--format", "json")[0])}[ids[1]] == "expired"
