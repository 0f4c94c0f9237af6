"""`headgate whois`, `block` and `unblock` while gateways are running."""

import asyncio
import getpass
import hashlib
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.support.principal import BLOCKED, blocked_key, derive_identifier, hash_value
from proxy.__main__ import main
from proxy.commands.shared_state import run_with_state
from proxy.config.build import read
from proxy.context import Caller
from tests.conftest import CANNED, StartGateway, tables_for
from tests.redis_server import RedisServer
from tests.upstream import FakeUpstream

KEYS = {"NEW_KEY": "the newer key", "OLD_KEY": "the older key"}
CALLERS = {"anna": "search", "ben": "search", "carol": "shop"}
TABLES = [
    {"name": name, "team": team, "key_sha256": hashlib.sha256(name.encode()).hexdigest()}
    for name, team in CALLERS.items()
]
DERIVED = {"source": "caller", "end_user_header": "X-End-User"}
REFUSED, PASSED = (400, "safety_identifier.blocked"), (200, None)
ANNA = derive_identifier(KEYS["NEW_KEY"].encode(), Caller("anna", "search"))
OTHER = derive_identifier(b"another key", Caller("anna", "search"))
numbers = count()


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


@pytest.fixture
def identifier() -> str:
    """Return an identifier that no other test blocks."""
    return f"person-{next(numbers)}"


def write_config(
    path: Path,
    *,
    policies: Sequence[str] = ('use = "safety_identifier"',),
    state: str = "",
    callers: Sequence[dict[str, str]] = TABLES,
) -> str:
    """Write a config with these policies and one recorded answer; return its path."""
    tables = [f'[[caller]]\nname = "{c["name"]}"\nteam = "{c["team"]}"\nkey_sha256 = "{c["key_sha256"]}"\n' for c in callers]  # fmt: skip
    tables += [f"[[policy]]\n{policy}\n" for policy in policies]
    path.write_text("\n".join([*tables, state, CANNED]))
    return str(path)


def redis_table(server: RedisServer, *, timeout_ms: int = 5000) -> dict[str, Any]:
    return {"use": "redis", "url": server.url, "timeout_ms": timeout_ms}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of a command."""
    capsys.readouterr()  # drop the log lines of a gateway of this test
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


async def send(http, gateway: str, caller: str = "anna", end_user: str = "", **body: Any) -> tuple[int, str | None]:
    """Return the status of a call, and its error code or None."""
    headers = {"Authorization": f"Bearer {caller}"} | ({"x-end-user": end_user} if end_user else {})
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", **body}, headers=headers) as answer:
        return answer.status, ((await answer.json()).get("error") or {}).get("code")


@pytest.fixture
def gateways(start_gateway: StartGateway, upstream: FakeUpstream, redis_server: RedisServer) -> Any:
    """Start two gateways that share their state in Redis."""

    async def start(**policy: Any) -> list[str]:
        table = {"use": "safety_identifier", **policy}
        tables = tables_for(upstream, policy=[table], caller=TABLES, state=redis_table(redis_server))
        return [await start_gateway(tables), await start_gateway(tables)]

    return start


@pytest.fixture
def command(tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command for an identifier with the config of the gateways that share their state."""
    state = f'[state]\nuse = "redis"\nurl = "{redis_server.url}"\ntimeout_ms = 5000\n'
    config = write_config(tmp_path / "shared.toml", policies=['use = "safety_identifier"'], state=state)

    async def run_command(name: str, identifier: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, capsys, name, "--config", config, "--", identifier)

    return run_command


@pytest.fixture
def whois(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `whois` with a config during a key rotation, and a list of end users and addresses."""
    users = tmp_path / "users.txt"
    users.write_text("kim\n\n  Ada Lovelace  \nj\u00f6rg\nkim@example.org\nada@example.org\n", encoding="utf-8")
    keys = 'keys = ["env:NEW_KEY", "env:OLD_KEY"]'
    derives = f'use = "safety_identifier"\nsource = "caller"\n{keys}\nend_user_header = "X-End-User"'
    hashes = f'use = "safety_identifier"\npii = "hash"\n{keys}'
    config = write_config(tmp_path / "headgate.toml", policies=['use = "metadata_limits"', derives, hashes])

    def run_whois(identifier: str, *options: str) -> tuple[int, str, str]:
        options = options or ("--end-users", str(users))
        return run(capsys, "whois", "--config", config, *options, "--", identifier)

    return run_whois


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize("name", CALLERS)
def test_whois_finds_a_caller_under_every_key(whois: Any, key: str, name: str):
    """During a rotation upstreams know identifiers of both keys."""
    identifier = derive_identifier(key.encode(), Caller(name, CALLERS[name]))

    assert whois(identifier) == (0, f"{name} (team {CALLERS[name]})\n", "")


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize("user", ["kim", "Ada Lovelace", "j\u00f6rg"])
def test_whois_finds_an_end_user_of_the_list(whois: Any, key: str, user: str):
    """The list has one name per line; a name may contain a space."""
    identifier = derive_identifier(key.encode(), Caller("ben", "search"), user)

    assert whois(identifier) == (0, f"ben (team search), for its end user {user}\n", "")


@pytest.mark.parametrize("key", KEYS.values())
@pytest.mark.parametrize(("team", "found"), [("search", "anna, ben (team search)"), ("shop", "carol (team shop)")])
def test_whois_finds_a_hashed_value_of_the_list(whois: Any, key: str, team: str, found: str):
    """It prints the value and every caller of the team, which share the hash."""
    identifier = hash_value(key.encode(), team, "ada@example.org")

    assert whois(identifier) == (0, f"{found}, hashed from ada@example.org\n", "")


@pytest.mark.parametrize(
    "identifier",
    [
        "unknown",
        "",
        "\udcff",
        "ada@example.org",
        derive_identifier(b"another key", Caller("anna", "search")),
        derive_identifier(b"the newer key", Caller("anna", "shop")),
        derive_identifier(b"the newer key", Caller("dave", "search")),
        derive_identifier(b"the newer key", Caller("anna", "search"), "lee"),
        derive_identifier(b"the newer key", Caller("anna", "search"), "Ada"),
        hash_value(b"another key", "search", "ada@example.org"),
        hash_value(b"the newer key", "search", "bob@example.org"),
        hash_value(b"the newer key", "search", ""),
        hash_value(b"the newer key", "anna", "ada@example.org"),
    ],
)
def test_whois_of_an_unknown_identifier_exits_with_1(whois: Any, identifier: str):
    """It belongs to another key or team, or to an end user or value that is not in the list."""
    assert whois(identifier) == (1, "No caller of this config has that identifier under any of its keys.\n", "")


@pytest.mark.parametrize(
    ("identifier", "status"),
    [
        (derive_identifier(b"the newer key", Caller("anna", "search")), 0),
        (derive_identifier(b"the newer key", Caller("anna", "search"), "kim"), 1),
        (hash_value(b"the newer key", "search", "ada@example.org"), 1),
    ],
)
def test_whois_without_a_list_finds_callers_only(whois: Any, tmp_path: Path, identifier: str, status: int):
    """End users and values cannot be computed from an identifier."""
    assert whois(identifier, "--config", str(tmp_path / "headgate.toml"))[0] == status


def test_whois_accepts_an_identifier_that_looks_like_an_option(whois: Any, tmp_path: Path):
    """One in 64 starts with a hyphen; it follows "--", as in the example of the help."""
    users = (f"user-{number}" for number in count())
    user = next(user for user in users if derive_identifier(b"the newer key", Caller("anna", "search"), user)[0] == "-")
    (tmp_path / "users.txt").write_text(user)

    assert whois(derive_identifier(b"the newer key", Caller("anna", "search"), user))[0] == 0


def test_whois_without_callers_finds_the_anonymous_one(tmp_path: Path, capsys):
    """A gateway without callers derives an identifier for the anonymous caller."""
    policy = 'use = "safety_identifier"\nsource = "caller"\nkey = "env:NEW_KEY"'
    config = write_config(tmp_path / "headgate.toml", policies=[policy], callers=())
    identifier = derive_identifier(b"the newer key", Caller("anybody", "anybody"))

    assert run(capsys, "whois", "--config", config, "--", identifier) == (0, "anybody (team anybody)\n", "")


@pytest.mark.parametrize("policies", [(), ('use = "safety_identifier"',)])
def test_whois_without_a_policy_that_has_a_key_exits_with_1(tmp_path: Path, capsys, policies: Sequence[str]):
    """Without such a policy no identifier belongs to a caller."""
    config = write_config(tmp_path / "headgate.toml", policies=policies)

    assert run(capsys, "whois", "x", "--config", config)[0] == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_of_end_users_that_cannot_be_read_exits_with_2(whois: Any, tmp_path: Path, content: bytes | None):
    """The message names the file."""
    users = tmp_path / "unreadable.txt"
    if content is not None:
        users.write_bytes(content)
    status, out, err = whois("x", "--end-users", str(users))

    assert (status, out) == (2, "")
    assert str(users) in err


@pytest.mark.parametrize("name", ["whois", "block", "unblock"])
def test_the_help_shows_an_identifier_after_two_hyphens(name: str, capsys):
    """Its example can be copied."""
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"example: headgate {name} --config my.toml -- IDENTIFIER" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["block", "unblock"])
def test_an_empty_identifier_exits_with_2(tmp_path: Path, capsys, name: str):
    """It is that of a shell's variable which is not set."""
    config = write_config(tmp_path / "headgate.toml", policies=[])

    assert run(capsys, name, "--config", config, "--", "") == (2, "", "the identifier is empty\n")


@pytest.mark.parametrize("name", ["block", "unblock", "whois"])
def test_a_command_without_a_config_exits_with_2(name: str, capsys):
    """There is no default config, and no gateway is named."""
    assert main([name, "x"]) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "calls"),
    [
        (
            DERIVED,
            [
                ({"caller": "anna"}, "anna (team search)\n"),
                ({"caller": "ben", "end_user": "kim"}, "ben (team search), for its end user kim\n"),
            ],
        ),
        (
            {"pii": "hash", "user": "move"},
            [
                ({"safety_identifier": "kim@example.org"}, "anna, ben (team search), hashed from kim@example.org\n"),
                ({"caller": "carol", "user": "ada@example.org"}, "carol (team shop), hashed from ada@example.org\n"),
            ],
        ),
    ],
    ids=["derived", "hashed"],
)
async def test_whois_finds_what_a_gateway_sent(
    start_gateway: StartGateway, http, upstream: FakeUpstream, whois: Any, policy: dict, calls: list[tuple[dict, str]]
):
    """It finds the identifiers of calls before and during a rotation."""
    for keys in (["env:OLD_KEY"], ["env:NEW_KEY", "env:OLD_KEY"]):
        table = {"use": "safety_identifier", "keys": keys, **policy}
        gateway = await start_gateway(tables_for(upstream, policy=[table], caller=TABLES))
        for call, _ in calls:
            await send(http, gateway, **call)
    sent = [request.body["safety_identifier"] for request in upstream.requests]
    found = [(await asyncio.to_thread(whois, identifier))[1] for identifier in sent]

    assert len(set(sent)) == 4
    assert found == [expected for _, expected in calls] * 2


async def test_every_gateway_refuses_a_blocked_identifier_from_the_next_call_on(
    gateways: Any, command: Any, http, upstream: FakeUpstream, identifier: str
):
    """It passes again as soon as it is unblocked. Repeating a command changes nothing."""
    both = await gateways()
    outcomes, printed = [], []
    for name in ("", "block", "block", "unblock", "unblock"):
        if name:
            printed.append(await command(name, identifier))
        outcomes.append([await send(http, gateway, safety_identifier=identifier) for gateway in both])

    assert outcomes == [[PASSED] * 2, [REFUSED] * 2, [REFUSED] * 2, [PASSED] * 2, [PASSED] * 2]
    assert printed == [
        (0, f"{identifier} is blocked.\n", ""),
        (0, f"{identifier} is blocked.\n", ""),
        (0, f"{identifier} is no longer blocked.\n", ""),
        (1, f"{identifier} is not blocked in [state]; `headgate block --list` prints what is.\n", ""),
    ]
    assert len(upstream.requests) == 6


async def test_a_state_in_sqlite_is_shared_with_the_commands(
    start_gateway: StartGateway, tmp_path: Path, http, upstream: FakeUpstream, capsys
):
    """All processes of one machine share it."""
    file = tmp_path / "state.db"
    tables = tables_for(upstream, policy=[{"use": "safety_identifier"}], caller=TABLES)
    gateway = await start_gateway({**tables, "state": {"use": "sqlite", "path": str(file)}})
    config = write_config(tmp_path / "headgate.toml", state=f'[state]\nuse = "sqlite"\npath = "{file}"\n')
    printed = await asyncio.to_thread(run, capsys, "block", "u-1", "--config", config)

    assert printed == (0, "u-1 is blocked.\n", "")
    assert await send(http, gateway, safety_identifier="u-1") == REFUSED
    assert await send(http, gateway, safety_identifier="u-2") == PASSED


def test_what_is_blocked_can_be_listed(tmp_path: Path, capsys):
    """The oldest first; of one that was blocked by an older version only the hash is known."""
    file = tmp_path / "state.db"
    config = write_config(tmp_path / "headgate.toml", state=f'[state]\nuse = "sqlite"\npath = "{file}"\n')
    listing = ("block", "--config", config, "--list")

    assert run(capsys, *listing) == (0, "No identifier is blocked in [state].\n", "")
    for name, identifiers in (("block", ("u-2", "u-1")), ("unblock", ("u-2",))):
        for each in identifiers:
            assert run(capsys, name, "--config", config, each)[0] == 0
    run_with_state(read(Path(config)), "test", lambda state: state.put(blocked_key("u-0"), b"1", ttl_s=60))
    code, out, _ = run(capsys, *listing)
    since, older = out.splitlines()

    assert code == 0
    assert re.fullmatch(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\dZ  u-1", since)
    assert older == f"before its identifiers were kept  (its hash: {blocked_key('u-0').removeprefix(BLOCKED)})"
    for wrong in ((), ("u-1", "--list")):
        assert run(capsys, "block", "--config", config, *wrong) == (2, "", "give either an identifier or --list\n")


@pytest.mark.parametrize("policy", ['use = "size"\nmax_items = 1', 'use = "safety_identifier"\nmode = "off"'])
def test_nothing_is_blocked_without_a_policy_that_refuses_it(tmp_path: Path, capsys, policy: str):
    """The message names the policy."""
    state = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n'
    config = write_config(tmp_path / "headgate.toml", policies=[policy], state=state)
    code, _, error = run(capsys, "block", "--config", config, "--", "u-1")

    assert (code, 'add one with use = "safety_identifier"' in error) == (2, True)


@pytest.mark.parametrize(
    ("policy", "possible", "impossible"),
    [
        ('use = "safety_identifier"', ["u-1", "u" * 64], ["u" * 65]),
        ('use = "safety_identifier"\npattern = "u-[0-9]+"', ["u-12"], ["u-l2", "U-1"]),
        ('use = "safety_identifier"\npii = "reject"', ["u-1"], ["anna@example.org"]),
        ('use = "safety_identifier"\nmode = "off"', [], ["u-1"]),
        ('use = "safety_identifier"\nsource = "caller"\nkey = "env:NEW_KEY"', [ANNA], ["anna", f"{ANNA[:-1]}_", OTHER]),
        (
            'use = "safety_identifier"\nsource = "caller"\nkey = "env:NEW_KEY"\nend_user_header = "x-user"',
            [ANNA, OTHER],
            ["anna", f"{ANNA}x"],
        ),
        ('use = "size"\nmax_items = 1', [], ["u-1"]),
    ],
)
def test_an_identifier_that_no_call_can_have_is_refused(
    tmp_path: Path, capsys, policy: str, possible: Sequence[str], impossible: Sequence[str]
):
    """It is mistyped: blocking it would have no effect."""
    state = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n'
    config = write_config(tmp_path / "headgate.toml", policies=[policy], state=state)
    statuses = {each: run(capsys, "block", "--config", config, "--", each)[0] for each in (*possible, *impossible)}

    assert statuses == dict.fromkeys(possible, 0) | dict.fromkeys(impossible, 2)


async def test_other_identifiers_pass(gateways: Any, command: Any, http, identifier: str):
    """Similar identifiers pass, and so do calls without one."""
    gateway, _ = await gateways()
    await command("block", identifier)
    others = [identifier.upper(), identifier[:-1], f"{identifier} ", "", None]

    assert [await send(http, gateway, safety_identifier=other) for other in others] == [PASSED] * 5


async def test_a_derived_identifier_is_blocked_as_it_is_sent(gateways: Any, command: Any, http, upstream: FakeUpstream):
    """The identifier in an upstream's complaint is enough to block it; other end users of the caller pass."""
    both = await gateways(**DERIVED, key="env:NEW_KEY")
    user, other = f"kim-{next(numbers)}", f"lee-{next(numbers)}"
    await send(http, both[0], "anna", user)
    await command("block", upstream.requests[0].body["safety_identifier"])

    assert [await send(http, gateway, "anna", user) for gateway in both] == [REFUSED] * 2
    assert [await send(http, both[0], "anna", other), await send(http, both[1], "ben", user)] == [PASSED] * 2


@pytest.mark.parametrize(
    ("settings", "people"),
    [
        (DERIVED, [{"end_user": "kim"}, {"end_user": "kim", "caller": "ben"}]),
        ({"pii": "hash"}, [{"safety_identifier": "kim@example.org"}, {"safety_identifier": "other-kim@example.org"}]),
    ],
    ids=["derived", "hashed"],
)
async def test_a_blocked_person_stays_blocked_after_a_rotation(
    gateways: Any, command: Any, http, upstream: FakeUpstream, settings: dict, people: list[dict]
):
    """The identifier changes with the key; another person passes."""
    before, _ = await gateways(**settings, keys=["env:OLD_KEY"])
    await send(http, before, **people[0])
    identifier = upstream.requests[0].body["safety_identifier"]
    await command("block", identifier)
    after, _ = await gateways(**settings, keys=["env:NEW_KEY", "env:OLD_KEY"])

    assert [await send(http, after, **person) for person in people] == [REFUSED, PASSED]
    await command("unblock", identifier)  # other tests have the same Redis


async def test_what_an_operator_does_is_in_the_audit(tmp_path: Path, capsys):
    """In a chain beside that of the gateway, with the name of the operator."""
    tables = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n[audit]\npath = "{tmp_path}/audit.jsonl"\n'
    config = write_config(tmp_path / "audited.toml", state=tables)
    for name in ("block", "unblock"):
        assert (await asyncio.to_thread(run, capsys, name, "--config", config, "--", "u-1"))[0] == 0
    file = tmp_path / "audit.operator.jsonl"
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]

    assert [(line["event"], line["identifier"]) for line in lines] == [
        ("identifier.blocked", "u-1"), ("identifier.unblocked", "u-1"),
    ]  # fmt: skip
    assert {line["operator"] for line in lines} == {getpass.getuser()}
    assert run(capsys, "audit", "verify", str(file))[:2] == (0, f"{file}: 2 lines, the chain is intact.\n")


@pytest.mark.parametrize(("on_failure", "status"), [("continue", 0), ("refuse", 2)])
async def test_an_operation_that_cannot_be_recorded(tmp_path: Path, capsys, on_failure: str, status: int):
    """It is done, and the operator reads why it is not recorded; or it is refused."""
    (tmp_path / "audit.operator.jsonl").write_text("not an audit line")
    tables = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n'
    tables += f'[audit]\npath = "{tmp_path}/audit.jsonl"\non_failure = "{on_failure}"\n'
    config = write_config(tmp_path / "audited.toml", state=tables)
    code, out, error = await asyncio.to_thread(run, capsys, "block", "--config", config, "--", "u-1")

    assert (code, out) == (status, "" if status else "u-1 is blocked.\n")
    assert "the last line of the audit file is incomplete" in error


async def test_why_an_operation_is_not_recorded_is_a_sentence(tmp_path: Path, capsys):
    """It names the file, and has no number of an error."""
    (tmp_path / "audit.operator.jsonl").mkdir()
    tables = f'[state]\nuse = "sqlite"\npath = "{tmp_path}/state.db"\n[audit]\npath = "{tmp_path}/audit.jsonl"\n'
    config = write_config(tmp_path / "audited.toml", state=tables)
    code, _, error = await asyncio.to_thread(run, capsys, "block", "--config", config, "--", "u-1")

    assert (code, error) == (0, f"not recorded in the audit: {tmp_path}/audit.operator.jsonl: Is a directory\n")


@pytest.mark.parametrize("name", ["block", "unblock"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("", 'state.use: "memory" is private to the serving process; block needs [state] use = "sqlite" or "redis"\n'),
        (
            '[state]\nuse = "memory"\n',
            'state.use: "memory" is private to the serving process; block needs [state] use = "sqlite" or "redis"\n',
        ),
        ('[state]\nuse = "sqlite"\npath = "/nowhere/state.db"\n', "state: "),
        ('[state]\nuse = "redis"\nurl = "redis://127.0.0.1:1/0"\n', "state: Redis: ConnectionError "),
    ],
    ids=["none", "memory", "sqlite", "redis"],
)
def test_a_state_that_is_private_or_fails_exits_with_2(tmp_path: Path, capsys, name: str, state: str, message: str):
    """The message names the remedy; stdout does not report success."""
    config = write_config(tmp_path / "headgate.toml", state=state)
    status, out, err = run(capsys, name, "x", "--config", config)

    assert (status, out) == (2, "")
    assert err.startswith(message)


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_while_redis_fails_only_the_identifiers_of_the_config_are_blocked(
    start_gateway: StartGateway, http, upstream: FakeUpstream, redis_server: RedisServer, logged, fault: str
):
    """The first call that needs Redis logs a warning without the identifier, and one after the outage how many did."""
    policy = [{"use": "safety_identifier", "blocked": ["listed"]}]
    state = redis_table(redis_server, timeout_ms=50)
    gateway = await start_gateway(tables_for(upstream, policy=policy, caller=TABLES, state=state))
    getattr(redis_server, fault)()
    try:
        callers = "listed", "unlisted", "listed", "unlisted"
        outcomes = [await send(http, gateway, safety_identifier=who) for who in callers]
    finally:
        redis_server.resume()
        if fault == "stop":
            redis_server.start()
    async with asyncio.timeout(20):
        while not (resumed := [line for line in logged if line["event"] == "blocklist.resumed"]):
            await send(http, gateway, safety_identifier="unlisted")
    warnings = [line for line in logged if line["event"] == "blocklist.failed"]

    assert outcomes == [REFUSED, PASSED, REFUSED, PASSED]
    assert [(line["log_level"], set(line)) for line in warnings] == [("warning", {"event", "error", "log_level"})]
    assert [line["failures"] >= 2 for line in resumed] == [True]
    assert "unlisted" not in str(warnings)
