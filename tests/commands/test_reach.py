"""`headgate check --reach` writes to each store, and names what refuses it."""

from pathlib import Path

import orjson
import pytest
import redis

from proxy.__main__ import main
from proxy.commands.reach import reach_issuers
from proxy.identity.issuer_table import IssuerTable
from tests.oidc import Provider
from tests.redis_server import RedisServer, free_port

CONFIG = """
[state]
use = "redis"
url = "{state}"
timeout_ms = 10_000
{user}
[[backend]]
name = "none"
use = "upstream"
base_url = "http://127.0.0.1:{free}/v1"
[[route]]
model = "*"
backend = "none"
[cache]
use = "redis"
url = "{cache}"
timeout_ms = 10_000
"""


@pytest.mark.parametrize(
    "outcome",
    [
        ("+@all", True, ["[state]: ok", "[cache]: ok"]),
        ("+@all -@scripting", True, ["[state]: a write failed: Redis: ErrorAnswer NOPERM", "[cache]: ok"]),
        ("+@all", False, ["[state]: ok", "[cache]: a write failed: Redis: ConnectionError (ConnectionRefusedError"]),
    ],
)
def test_each_store_takes_a_write_or_says_why_not(
    outcome: tuple[str, bool, list[str]], redis_server: RedisServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """A user without a right is named as such, an address without a server too, after the backends."""
    rights, cache_is_up, expected = outcome
    monkeypatch.setenv("REDIS_USER", "limited")
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    direct = redis.Redis(port=redis_server.port)
    direct.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", *rights.split())
    cache = redis_server.url if cache_is_up else f"redis://127.0.0.1:{free_port()}/0"
    user = 'user = "env:REDIS_USER"\npassword = "env:REDIS_PASSWORD"'
    config = tmp_path / "headgate.toml"
    config.write_text(CONFIG.format(state=redis_server.url, cache=cache, user=user, free=free_port()))
    main(["check", "--reach", "--config", str(config)])
    direct.execute_command("ACL", "DELUSER", "limited")
    printed = capsys.readouterr().out.splitlines()

    assert [line.startswith(start) for line, start in zip(printed[-2:], expected, strict=True)] == [True, True], printed


async def test_the_keys_of_each_issuer_are_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Or what keeps them away is named; a file of keys is read again."""
    async with Provider() as provider:
        (tmp_path / "keys.json").write_bytes(orjson.dumps({"keys": provider.keys}))
        tables = [
            provider.table(), provider.table(jwks_url=f"{provider.address}/absent"), provider.table(timeout_s=0.05),
            provider.table(jwks_file=str(tmp_path / "keys.json")), provider.table(jwks_url="http://127.0.0.1:1/keys"),
        ]  # fmt: skip
        issuers = [IssuerTable.model_validate({**table, "name": f"i{number}"}) for number, table in enumerate(tables)]
        provider.answers["/absent"] = {"keys": []}
        first = await reach_issuers([issuers[0], issuers[1], issuers[3], issuers[4]])
        provider.answers["/keys"] = provider.hang
        second = await reach_issuers([issuers[2]])

    assert {**first, **second} == {
        "issuer i0": None, "issuer i1": "none of its 0 keys can be used", "issuer i3": None,
        "issuer i4": "no answer of 127.0.0.1:1: ClientConnectorError", "issuer i2": "no answer within 0.05 s",
    }  # fmt: skip
