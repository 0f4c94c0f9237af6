"""`headgate whois`, `block` and `unblock`, as a person types them while gates are running."""

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from proxy.__main__ import main
from proxy.wire.call import Caller
from proxy.wire.principal import hashed, identifier_of
from tests.conftest import CANNED, StartGate, tables_for
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream

KEYS = {"NEW_KEY": "the newer key", "OLD_KEY": "the older key"}
CALLERS = {"anna": "search", "ben": "search", "carol": "shop"}
TABLES = [
    {"name": name, "team": team, "key_sha256": hashlib.sha256(name.encode()).hexdigest()}
    for name, team in CALLERS.items()
]
BOUND = {"use": "safety_identifier", "source": "caller", "end_user_header": "X-End-User"}
numbers = count()


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


@pytest.fixture
def identifier() -> str:
    """One that no other test blocks."""
    return f"person-{next(numbers)}"


def toml(policy: str, *, state: str = "", callers: Sequence[dict[str, str]] = TABLES) -> str:
    """A config with these policies before a canned answer."""
    listed = "".join(f'[[caller]]\nname = "{c["name"]}"\nteam = "{c["team"]}"\nkey_sha256 = "{c["key_sha256"]}"\n' for c in callers)  # fmt: skip
    return f"""
{listed}
{policy}
{state}
{CANNED}"""


def in_redis(server: RedisServer, *, timeout_ms: int = 5000) -> dict[str, Any]:
    return {"use": "redis", "url": server.url, "timeout_ms": timeout_ms}


def shared(tmp_path: Path, server: RedisServer) -> str:
    """The config file of gates that share their state."""
    path = tmp_path / "shared.toml"
    state = f'[state]\nuse = "redis"\nurl = "{server.url}"\ntimeout_ms = 5000\n'
    path.write_text(toml('[[policy]]\nuse = "safety_identifier"\n', state=state))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str, str]:
    """The exit code, and what was said on stdout and on stderr."""
    capsys.readouterr()  # a gate of this test logs there, too
    code = main(typed)
    told = capsys.readouterr()
    return code, told.out, told.err


async def ask(http, gate: str, caller: str = "anna", end_user: str = "", **body: Any) -> tuple[int, str | None]:
    """The status and, of a refusal, the code."""
    headers = {"Authorization": f"Bearer {caller}"} | ({"x-end-user": end_user} if end_user else {})
    async with http.post(f"{gate}/v1/responses", json={"model": "m", **body}, headers=headers) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


@pytest.fixture
def gates(start_gate: StartGate, upstream: FakeUpstream, redis_server: RedisServer) -> Any:
    """Start two gates with one state between them."""

    async def start(**policy: Any) -> list[str]:
        table = {"use": "safety_identifier", **policy}
        tables = tables_for(upstream, policy=[table], caller=TABLES, state=in_redis(redis_server))
        return [await start_gate(tables), await start_gate(tables)]

    return start


@pytest.fixture
def command(tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Type a command about an identifier, with the config of the gates that share their state."""
    config = shared(tmp_path, redis_server)

    async def typed(name: str, identifier: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, capsys, name, "--config", config, "--", identifier)

    return typed


@pytest.fixture
def whois(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Ask whose an identifier is, of a config in the middle of a rotation that knows two end users."""
    config, users = tmp_path / "headgate.toml", tmp_path / "users.txt"
    users.write_text("kim\n\n  Ada Lovelace  \nj\u00f6rg\n", encoding="utf-8")
    config.write_text(
        toml("""
[[policy]]
use = "metadata_limits"
[[policy]]
use = "safety_identifier"
source = "caller"
keys = ["env:NEW_KEY", "env:OLD_KEY"]
end_user_header = "X-End-User"
""")
    )

    def ask_for(identifier: str, *more: str) -> tuple[int, str, str]:
        return run(capsys, "whois", "--config", str(config), *(more or ("--end-users", str(users))), "--", identifier)

    return ask_for


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize("name", CALLERS)
def test_whois_finds_a_caller_under_every_key(whois: Any, key: str, name: str):
    """While keys are rotated, identifiers of both are about."""
    identifier = identifier_of(key.encode(), Caller(name, CALLERS[name]))

    assert whois(identifier) == (0, f"{name} (team {CALLERS[name]})\n", "")


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize("user", ["kim", "Ada Lovelace", "j\u00f6rg"])
def test_whois_finds_an_end_user_that_the_operator_lists(whois: Any, key: str, user: str):
    """One a line; a name may have a space in it."""
    identifier = identifier_of(key.encode(), Caller("ben", "search"), user)

    assert whois(identifier) == (0, f"ben (team search), for its end user {user}\n", "")


@pytest.mark.parametrize(
    "identifier",
    [
        "somebody",
        "",
        identifier_of(b"another key", Caller("anna", "search")),
        identifier_of(b"the newer key", Caller("anna", "shop")),
        identifier_of(b"the newer key", Caller("dave", "search")),
        identifier_of(b"the newer key", Caller("anna", "search"), "lee"),
        identifier_of(b"the newer key", Caller("anna", "search"), "Ada"),
        "\udcff",
    ],
)
def test_whois_of_nobody_is_exit_1(whois: Any, identifier: str):
    """Another key's, another team's, an end user's who is not listed."""
    assert whois(identifier) == (1, "No caller of this config has that identifier under any of its keys.\n", "")


def test_whois_without_a_list_knows_callers_only(whois: Any, tmp_path: Path):
    """End users cannot be guessed."""
    caller = Caller("anna", "search")
    config = str(tmp_path / "headgate.toml")

    assert whois(identifier_of(b"the newer key", caller), "--config", config)[0] == 0
    assert whois(identifier_of(b"the newer key", caller, "kim"), "--config", config)[0] == 1


def test_whois_reads_identifiers_that_look_like_options(whois: Any, tmp_path: Path):
    """One in 64 begins with a hyphen; it stands behind two of them, as the help's example shows."""
    users = (f"user-{number}" for number in count())
    user = next(user for user in users if identifier_of(b"the newer key", Caller("anna", "search"), user)[0] == "-")
    (tmp_path / "users.txt").write_text(user)

    assert whois(identifier_of(b"the newer key", Caller("anna", "search"), user))[0] == 0


@pytest.mark.parametrize("name", ["whois", "block", "unblock"])
def test_the_help_shows_where_the_identifier_stands(name: str, capsys):
    """Behind the two hyphens."""
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"example: headgate {name} --config my.toml -- IDENTIFIER" in capsys.readouterr().out


def test_whois_of_a_gate_for_everybody_knows_anybody(tmp_path: Path, capsys):
    """Without callers there is one all the same."""
    config = tmp_path / "headgate.toml"
    config.write_text(
        toml('[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "env:NEW_KEY"\n', callers=())
    )
    identifier = identifier_of(b"the newer key", Caller("anybody", "anybody"))

    assert run(capsys, "whois", "--config", str(config), "--", identifier) == (0, "anybody (team anybody)\n", "")


def test_whois_without_a_policy_that_signs_is_exit_1(tmp_path: Path, capsys):
    """Nothing that goes out says who asks."""
    config = tmp_path / "headgate.toml"
    config.write_text(toml(""))

    assert run(capsys, "whois", "x", "--config", str(config))[0] == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_of_end_users_that_cannot_be_read_is_exit_2(whois: Any, tmp_path: Path, content: bytes | None):
    """It is named."""
    users = tmp_path / "unread.txt"
    if content is not None:
        users.write_bytes(content)
    code, out, err = whois("x", "--end-users", str(users))

    assert (code, out) == (2, "")
    assert str(users) in err


@pytest.fixture
def hashing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Ask whose a hash is, of a config in the middle of a rotation, with a list of addresses."""
    config, mails = tmp_path / "hashing.toml", tmp_path / "mails.txt"
    mails.write_text("kim@example.org\nada@example.org\n")
    policy = '[[policy]]\nuse = "safety_identifier"\npii = "hash"\nkeys = ["env:NEW_KEY", "env:OLD_KEY"]\n'
    config.write_text(toml(policy))

    def ask_for(identifier: str, *more: str) -> tuple[int, str, str]:
        return run(capsys, "whois", "--config", str(config), *(more or ("--end-users", str(mails))), "--", identifier)

    return ask_for


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize(("team", "told"), [("search", "anna, ben (team search)"), ("shop", "carol (team shop)")])
def test_whois_finds_a_value_that_was_hashed(hashing: Any, key: str, team: str, told: str):
    """Under every key, if the operator lists it: then it is told, with all who share the hash."""
    identifier = hashed(key.encode(), team, "ada@example.org")

    assert hashing(identifier) == (0, f"{told}, hashed from ada@example.org\n", "")


@pytest.mark.parametrize(
    "identifier",
    [
        hashed(b"another key", "search", "ada@example.org"),
        hashed(b"the newer key", "search", "bob@example.org"),
        hashed(b"the newer key", "search", ""),
        hashed(b"the newer key", "anna", "ada@example.org"),
        "ada@example.org",
    ],
)
def test_whois_of_another_hash_is_exit_1(hashing: Any, identifier: str):
    """Another key's, another team's, a value's that is not listed."""
    assert hashing(identifier)[0] == 1


def test_whois_without_a_list_knows_no_hash(hashing: Any, tmp_path: Path):
    """Values cannot be guessed."""
    identifier = hashed(b"the newer key", "search", "ada@example.org")

    assert hashing(identifier, "--config", str(tmp_path / "hashing.toml"))[0] == 1


async def test_whois_knows_what_a_gate_hashed(start_gate: StartGate, http, upstream: FakeUpstream, hashing: Any):
    """Before a rotation and after it, whether it stood in safety_identifier or in user."""
    for signing in (["env:OLD_KEY"], ["env:NEW_KEY", "env:OLD_KEY"]):
        policy = {"use": "safety_identifier", "pii": "hash", "user": "move", "keys": signing}
        gate = await start_gate(tables_for(upstream, policy=[policy], caller=TABLES))
        await ask(http, gate, "anna", safety_identifier="kim@example.org")
        await ask(http, gate, "carol", user="ada@example.org")
    sent = [asked.body["safety_identifier"] for asked in upstream.requests]
    told = [(await asyncio.to_thread(hashing, identifier))[1] for identifier in sent]

    assert len(set(sent)) == 4
    assert (
        told
        == [
            "anna, ben (team search), hashed from kim@example.org\n",
            "carol (team shop), hashed from ada@example.org\n",
        ]
        * 2
    )


async def test_whois_knows_what_a_gate_sent(start_gate: StartGate, http, upstream: FakeUpstream, whois: Any):
    """Before a rotation and after it, for a caller and for whom it speaks."""
    keys = [["env:OLD_KEY"], ["env:NEW_KEY", "env:OLD_KEY"]]
    for signing in keys:
        gate = await start_gate(tables_for(upstream, policy=[BOUND | {"keys": signing}], caller=TABLES))
        await ask(http, gate, "anna")
        await ask(http, gate, "ben", "kim")
    sent = [asked.body["safety_identifier"] for asked in upstream.requests]
    told = [(await asyncio.to_thread(whois, identifier))[1] for identifier in sent]

    assert len(set(sent)) == 4
    assert told == ["anna (team search)\n", "ben (team search), for its end user kim\n"] * 2


async def test_who_is_blocked_is_refused_by_every_gate_from_the_next_call_on(
    gates: Any, command: Any, http, upstream: FakeUpstream, identifier: str
):
    """And let pass again by every gate, as soon as it is unblocked."""
    both = await gates()
    fates, said = [], []
    for name in ("", "block", "block", "unblock", "unblock"):
        if name:
            said.append(await command(name, identifier))
        fates.append([await ask(http, gate, safety_identifier=identifier) for gate in both])

    assert fates == [
        [(200, None)] * 2,
        [(400, "safety_identifier.blocked")] * 2,
        [(400, "safety_identifier.blocked")] * 2,
        [(200, None)] * 2,
        [(200, None)] * 2,
    ]
    assert said == [
        (0, f"{identifier} is blocked.\n", ""),
        (0, f"{identifier} is blocked.\n", ""),
        (0, f"{identifier} is no longer blocked.\n", ""),
        (0, f"{identifier} is no longer blocked.\n", ""),
    ]
    assert len(upstream.requests) == 6


async def test_only_who_is_blocked_is_refused(gates: Any, command: Any, http, identifier: str):
    """Not who has a similar name, and not who has none."""
    gate, _ = await gates()
    await command("block", identifier)
    others = [identifier.upper(), identifier[:-1], f"{identifier} ", "", None]

    assert [await ask(http, gate, safety_identifier=other) for other in others] == [(200, None)] * 5


async def test_a_principal_can_be_blocked_by_what_goes_out(gates: Any, command: Any, http, upstream: FakeUpstream):
    """What an upstream complains about is all that is needed; other end users of the caller go on."""
    both = await gates(**BOUND | {"key": "env:NEW_KEY"})
    user, other = f"kim-{next(numbers)}", f"lee-{next(numbers)}"
    await ask(http, both[0], "anna", user)
    sent = upstream.requests[0].body["safety_identifier"]
    await command("block", sent)

    assert [await ask(http, gate, "anna", user) for gate in both] == [(400, "safety_identifier.blocked")] * 2
    assert [await ask(http, both[0], "anna", other), await ask(http, both[1], "ben", user)] == [(200, None)] * 2


async def test_who_is_blocked_stays_blocked_when_keys_are_rotated(
    gates: Any, command: Any, http, upstream: FakeUpstream
):
    """A new key gives everybody a new identifier, and nobody a new start."""
    user = f"kim-{next(numbers)}"
    old = BOUND | {"key": "env:OLD_KEY"}
    new = BOUND | {"keys": ["env:NEW_KEY", "env:OLD_KEY"]}
    before, _ = await gates(**old)
    await ask(http, before, "anna", user)
    sent = upstream.requests[0].body["safety_identifier"]
    await command("block", sent)
    after, _ = await gates(**new)

    assert await ask(http, after, "anna", user) == (400, "safety_identifier.blocked")
    assert await ask(http, after, "ben", user) == (200, None)


async def test_a_blocked_value_stays_blocked_when_keys_are_rotated(
    gates: Any, command: Any, http, upstream: FakeUpstream
):
    """The hash of what a caller chose is another under a new key, too."""
    mail = f"kim-{next(numbers)}@example.org"
    before, _ = await gates(pii="hash", keys=["env:OLD_KEY"])
    await ask(http, before, safety_identifier=mail)
    sent = upstream.requests[0].body["safety_identifier"]
    await command("block", sent)
    after, _ = await gates(pii="hash", keys=["env:NEW_KEY", "env:OLD_KEY"])

    assert await ask(http, after, safety_identifier=mail) == (400, "safety_identifier.blocked")
    assert await ask(http, after, safety_identifier=f"other-{mail}") == (200, None)


@pytest.mark.parametrize("name", ["block", "unblock"])
@pytest.mark.parametrize("state", ["", '[state]\nuse = "memory"\n'])
def test_a_state_that_no_gate_shares_is_exit_2(tmp_path: Path, capsys, name: str, state: str):
    """What it says is what mends it."""
    config = tmp_path / "headgate.toml"
    config.write_text(toml("", state=state))

    assert run(capsys, name, "x", "--config", str(config)) == (
        2,
        "",
        'state.use: "memory" is the serving process\'s own; block needs [state] use = "redis"\n',
    )


@pytest.mark.parametrize("name", ["block", "unblock"])
def test_a_state_that_is_away_is_exit_2(tmp_path: Path, capsys, name: str):
    """Nobody is told that somebody is blocked who is not."""
    nowhere = RedisServer(tmp_path)
    code, out, err = run(capsys, name, "x", "--config", shared(tmp_path, nowhere))

    assert (code, out) == (2, "")
    assert err.startswith("state: ConnectionError: ")


@pytest.mark.parametrize("name", ["block", "unblock", "whois"])
def test_a_command_without_a_config_is_exit_2(name: str, capsys):
    """There is none to guess."""
    with pytest.raises(SystemExit, match="2"):
        main([name, "x"])
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize("away", ["stop", "pause"])
async def test_a_state_that_is_away_blocks_nobody_but_whom_the_config_names(
    start_gate: StartGate, http, upstream: FakeUpstream, redis_server: RedisServer, logged, away: str
):
    """One warning for each call says so, and no call waits for long."""
    policy = [{"use": "safety_identifier", "blocked": ["listed"]}]
    state = in_redis(redis_server, timeout_ms=50)
    gate = await start_gate(tables_for(upstream, policy=policy, caller=TABLES, state=state))
    getattr(redis_server, away)()
    try:
        fates = [await ask(http, gate, safety_identifier=who) for who in ("listed", "somebody", "listed")]
    finally:
        redis_server.resume()
        if away == "stop":
            redis_server.start()

    assert fates == [(400, "safety_identifier.blocked"), (200, None), (400, "safety_identifier.blocked")]
    assert [line["log_level"] for line in logged if line["event"] == "blocklist.failed"] == ["warning"]
    assert "somebody" not in str([line for line in logged if line["event"] == "blocklist.failed"])
