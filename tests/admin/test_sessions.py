"""Sessions of operators: kept in the state, so that they end everywhere at once."""

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.admin.access import Access
from proxy.admin.answers import ProcessAnswers
from proxy.admin.api.sessions import SESSION
from proxy.admin.api.state import find_keys
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.processes import Processes
from proxy.config.admin_table import AdminTable
from proxy.config.build import Config, build
from tests.conftest import tables_for
from tests.operators import KEYS, Console, console_tables, start_console
from tests.redis_server import free_port

OWNER = {"name": "ada", "role": "owner", "key": "env:TEST_ADA"}
SETTINGS = {"host": "127.0.0.1", "key": [OWNER], "session_s": 60}


@pytest.fixture
def tables(upstream, tmp_path, monkeypatch) -> dict[str, Any]:
    monkeypatch.setenv("TEST_NEW_KEY", "another-key-0123456789-0123456789-0123")
    return console_tables(upstream, tmp_path, monkeypatch)


@pytest.fixture
async def console(tables, start_gateway, logged, http) -> Console:
    return await start_console(start_gateway, tables, logged, http)


@pytest.fixture
def start_another(tables, start_gateway, logged, http, tmp_path) -> Callable[..., Awaitable[Console]]:
    """Start a gateway that shares the state of the first one, with other operators."""

    async def start(**changed: Any) -> Console:
        keys = [{**key, **changed} if key["name"] == "search_admin" else key for key in tables["admin"]["key"]]
        audit = {"path": str(tmp_path / "another.jsonl")}
        other = {**tables, "admin": {**tables["admin"], "key": keys}, "audit": audit}
        return await start_console(start_gateway, other, logged, http)

    return start


async def sign_in(console: Console, who: str, cookie: str = "") -> dict[str, str]:
    """Return the header with the cookie of a new session."""
    headers = {"Cookie": cookie} if cookie else {}
    address = f"{console.admin}/admin/sign-in"
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        http.post(address, data={"key": KEYS[who]}, headers=headers, allow_redirects=False) as answer,
    ):
        assert answer.status == 303
        return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


async def who_is(console: Console, session: dict[str, str]) -> Any:
    status, found = await console.ask("GET", "/me", headers=session)
    return (found["role"], found["team"]) if status == 200 else status


async def sign_out(console: Console, session: dict[str, str]) -> None:
    async with console.http.get(f"{console.admin}/admin/try", headers=session) as answer:
        token = (await answer.text()).partition('name="csrf" value="')[2].partition('"')[0]
    address = f"{console.admin}/admin/sign-out"
    async with console.http.post(address, data={"csrf": token}, headers=session, allow_redirects=False) as answer:
        assert (answer.status, "Max-Age=0" in answer.headers["Set-Cookie"]) == (303, True)


async def test_a_session_is_valid_at_every_gateway_until_it_is_ended(console: Console, start_another):
    """Who has copied its cookie is signed out too."""
    another = await start_another()
    session = await sign_in(console, "search_admin")
    assert [await who_is(each, session) for each in (console, another)] == [("team_admin", "search")] * 2
    await sign_out(another, session)

    assert [await who_is(each, session) for each in (console, another)] == [401, 401]


async def test_an_owner_ends_all_sessions_of_an_operator(console: Console, start_another):
    """Those of others stay; the operator may sign in again, and the audit has all of it."""
    another = await start_another()
    ended = [await sign_in(each, "search_admin") for each in (console, another)]
    kept = await sign_in(console, "owner")
    _, before = await console.ask("GET", "/sessions")
    assert (await console.ask("POST", "/sessions/end", {"operator": "search_admin"}, "search_admin"))[0] == 403
    assert (await console.ask("POST", "/sessions/end", {"operator": "search_admin"}))[0] == 200
    _, after = await console.ask("GET", "/sessions")
    again = await sign_in(console, "search_admin")
    _, audit = await console.ask("GET", "/audit")

    assert [each["operator"] for each in before["sessions"]] == ["owner", "search_admin", "search_admin"]
    assert [each["operator"] for each in after["sessions"]] == ["owner"]
    assert [await who_is(each, session) for each in (console, another) for session in ended] == [401] * 4
    assert [await who_is(console, session) for session in (kept, again)] == [("owner", ""), ("team_admin", "search")]
    assert [entry["event"] for entry in audit["entries"]] == [
        "operator.signed_in", "operator.sessions_ended", "operator.signed_in", "operator.signed_in",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"role": "viewer"}, ("viewer", "search")),
        ({"team": "billing"}, ("team_admin", "billing")),
        ({"key": "env:TEST_NEW_KEY"}, 401),
        ({"name": "another"}, 401),
    ],
    ids=["demoted", "moved", "with another key", "removed"],
)
async def test_a_session_has_the_rights_that_the_config_gives_now(console: Console, start_another, changed, expected):
    """It ends where its key is gone."""
    session = await sign_in(console, "search_admin")

    assert await who_is(await start_another(**changed), session) == expected


async def test_a_stream_ends_with_its_session(console: Console):
    """What is followed in a browser stops when the session is ended elsewhere."""
    session = await sign_in(console, "viewer")
    async with console.http.get(f"{console.admin}/admin/live", headers=session) as live:
        await live.content.readuntil(b"\n\n")
        await sign_out(console, session)
        while await live.content.read(65_536):
            pass
    async with console.http.get(f"{console.admin}/admin/live", headers=session, allow_redirects=False) as answer:
        assert answer.status == 303


async def test_a_cookie_that_a_browser_brings_is_never_made_valid(console: Console):
    """A session that was fixed before the sign-in stays unknown; the new one has a token of its own."""
    fixed = f"headgate_session={'A' * 43}"
    session = await sign_in(console, "owner", fixed)

    assert session["Cookie"] != fixed
    assert [await who_is(console, each) for each in (session, {"Cookie": fixed})] == [("owner", ""), 401]


@pytest.mark.parametrize(
    "cookie", ["", "x", "A" * 43, "A" * 8000, "é", "../../x", "headgate:operator-session:", "A" * 42 + "\udcff"]
)
async def test_a_cookie_that_was_not_given_out_is_none(opened, cookie):
    """Whatever it is; only what looks like a token is asked for."""
    access, _, _ = opened
    assert await access.sessions.read(cookie) is None


@pytest.fixture
async def opened(upstream, monkeypatch) -> tuple[Access, Config, str]:
    """A session of an owner in a state in memory: what reads it, the config, and the token."""
    access, config = access_of(tables_for(upstream), monkeypatch)
    entry = access.entrances.by_key(KEYS["owner"])
    assert entry is not None
    return access, config, await access.sessions.open(entry)


def access_of(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Access, Config]:
    monkeypatch.setenv("TEST_ADA", KEYS["owner"])
    config = build({**tables, "admin": SETTINGS})
    assert config.admin is not None
    parts = GatewayParts(lambda: config, None, None)  # type: ignore[arg-type]  sessions need the state only
    return Access(config.admin, Processes(ProcessAnswers(parts).ask_self, None, None)), config  # type: ignore[arg-type]


async def test_a_session_ends_after_its_time(opened):
    """Also if the store keeps it longer."""
    access, _, token = opened
    session = await access.sessions.read(token)
    assert session is not None
    assert await access.sessions.is_open(session)
    began = access.sessions._clock()
    access.sessions._clock = lambda: began + 61

    assert not await access.sessions.is_open(session)
    assert await access.sessions.read(token) is None


async def test_a_token_belongs_to_one_session(opened):
    """Those of two sessions differ, and that of a listener without sign-in is another one."""
    access, _, token = opened
    first = await access.sessions.read(token)
    second = await access.sessions.read(await access.sessions.open(access.entrances.by_key(KEYS["owner"])))

    assert len({first.csrf, second.csrf, access.sessions.local().csrf}) == 3


@pytest.mark.parametrize("field", ["name", "team", "claim", "opened", "proof"])
async def test_who_writes_to_the_state_opens_no_session(opened, field):
    """What is kept is signed with the operator's key; the token itself is not in it."""
    access, config, token = opened
    keys, is_complete = await find_keys(config.state, SESSION, 10)
    assert (len(keys), is_complete) == (1, True)
    value = await config.state.get(keys[0])
    opened_in, kept = orjson.loads(value)
    changed = orjson.dumps([opened_in, {**kept, field: kept[field] + 1 if field == "opened" else f"{kept[field]}x"}])
    await config.state.put(keys[0], changed, ttl_s=60)

    assert token not in f"{keys}{value}"
    assert await access.sessions.read(token) is None


async def test_a_state_that_is_away_is_a_problem(upstream, monkeypatch):
    """No session can be read or opened meanwhile; keys of programs need none."""
    tables = tables_for(upstream, state={"use": "redis", "url": f"redis://127.0.0.1:{free_port()}/0"})
    access, _ = access_of(tables, monkeypatch)
    with pytest.raises(Problem) as raised:
        await access.sessions.read("A" * 43)

    assert (raised.value.status, raised.value.code) == (503, "state_unavailable")


async def test_a_search_for_keys_is_bounded(opened):
    """It says that there are more."""
    access, config, _ = opened
    for _ in range(3):
        await access.sessions.open(access.entrances.by_key(KEYS["owner"]))

    assert [len((await find_keys(config.state, SESSION, most))[0]) for most in (2, 4, 9)] == [2, 4, 4]
    assert [(await find_keys(config.state, SESSION, most))[1] for most in (2, 9)] == [False, True]


def test_keys_of_operators_need_no_state(monkeypatch):
    """They are in the config."""
    monkeypatch.setenv("TEST_ADA", KEYS["owner"])
    access = Access(AdminTable(**SETTINGS), None)  # type: ignore[arg-type]

    assert access.entrances.by_key(KEYS["owner"]) is not None
    assert access.entrances.by_key(KEYS["owner"][:-1]) is None
