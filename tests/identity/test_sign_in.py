"""Tokens of a real provider at a real gateway: who they are, and what happens when keys, clocks and issuers change."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.app import Reloading
from proxy.config.build import Config, build
from proxy.http.key_fetch import fetch_keys
from proxy.http.websocket import session
from proxy.identity import issuer_keys
from proxy.identity.directory import Directory
from proxy.identity.issuer_table import IssuerTable
from proxy.identity.sign_in import SignIn
from proxy.wire.errors import HeadgateError
from tests.conftest import tables_for
from tests.oidc import Provider, public_jwk, segment
from tests.raw import ask, no_tasks_left, post, until  # noqa: F401
from tests.sockets import calling
from tests.timeouts import pause
from tests.upstream import FakeUpstream


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


class Worker:
    """The tokens as one process knows them, at times that the test sets."""

    def __init__(self, provider: Provider, **table: object) -> None:
        self.now, self.monotonic = 0.0, 1000.0
        self.provider = provider
        self.sign_in = SignIn(fetch_keys, self.clock, lambda: self.monotonic)
        self.sign_in.replace([IssuerTable.model_validate(provider.table(**table))])
        self.keys = self.sign_in.issuers[0]

    def clock(self) -> float:
        return self.provider.claims()["iat"] + self.now

    async def ask(self, token: str) -> str:
        """Return the name of the caller, or the code of the refusal."""
        digest = hashlib.sha256(token.encode()).digest()
        try:
            try:
                return self.sign_in.identify(token, digest).name
            except issuer_keys.KeysPending as pending:
                await pending.wait()
                return self.sign_in.identify(token, digest).name
        except HeadgateError as error:
            return error.code or ""


@pytest.fixture
async def worker(provider: Provider) -> AsyncIterator[Worker]:
    made = Worker(provider)
    yield made
    await made.sign_in.close()


async def test_the_team_of_a_token_that_was_checked_is_known(worker: Worker, provider: Provider):
    """A request that waits stands in line with its team, by whichever header; another token is not looked into."""
    directory, token, other = (
        Directory({}, has_issued=True, sign_in=worker.sign_in),
        provider.token(),
        provider.token(x=1),
    )
    before = directory.team_of(CIMultiDict({"Authorization": f"Bearer {token}"}))
    name = await worker.ask(token)
    caller = worker.sign_in.known(hashlib.sha256(token.encode()).digest())
    headers = ({"Authorization": f"Bearer {token}"}, {"api-key": token}, {"Authorization": f"Bearer {other}"})

    assert caller is not None
    assert (before, caller.name) == ("", name)
    assert [directory.team_of(CIMultiDict(each)) for each in headers] == [caller.team, caller.team, ""]


async def test_a_token_names_caller_team_and_tags_in_each_transport(
    start_gateway, upstream: FakeUpstream, provider, logged
):
    """In any of the three headers, and in exactly one; the log names issuer and subject, not the token."""
    caller = {"name": "batch", "team": "ads", "key_sha256": hashlib.sha256(b"sk-batch").hexdigest()}
    table = provider.table(tags={"project": "project_id"}, teams={"grp-2": "search", "grp-1": "ads"}, team="groups")
    gateway = await start_gateway(tables_for(upstream, caller=[caller], issuer=[table]))
    token = provider.token(groups=["grp-1", "grp-2"], project_id="p,q=1")
    sent = [{"authorization": f"Bearer {token}"}, {"api_key": token}, {"x_api_key": token}, {"api_key": "sk-batch"}]
    statuses = [(await ask(gateway, post(**headers))).status for headers in sent]
    both = await ask(gateway, post(api_key=token, authorization=f"Bearer {token}"))
    clash = await ask(gateway, post(api_key=provider.token(sub="batch", groups=["grp-2"])))

    assert (statuses, both.status, clash.status, clash.error["code"]) == ([200] * 4, 401, 403, "token_not_allowed")
    lines = [line for line in logged if line["event"] == "request.finished"]
    fingerprint = hashlib.sha256(f"{provider.address}\0ada".encode()).hexdigest()[:12]
    expected = {
        "caller": "ada",
        "team": "search",
        "issuer": "corp",
        "tags": "project=p_q_1",
        "key_fingerprint": fingerprint,
    }
    assert [{name: line[name] for name in expected} for line in lines[:3]] == [expected] * 3
    assert "issuer" not in lines[3]
    assert token not in repr(logged)


async def test_a_token_of_a_team_that_is_a_lone_caller_is_refused(start_gateway, upstream: FakeUpstream, provider):
    """It would share that caller's cached answers and budgets. With a team of the same name nothing is refused."""
    statuses = []
    for own in ({}, {"team": "ads"}):
        caller = {"name": "ads", "key_sha256": hashlib.sha256(b"sk-ads").hexdigest(), **own}
        gateway = await start_gateway(tables_for(upstream, caller=[caller], issuer=[provider.table()]))
        answers = [await ask(gateway, post(api_key=provider.token(team=team))) for team in ("ads", "search")]
        own_name = await ask(gateway, post(api_key=provider.token(sub="ads", team="ads")))
        statuses.append([answer.status for answer in (*answers, own_name)])

    assert statuses == [[403, 200, 200], [200, 200, 200]]


BAD_TOKENS = {
    "another audience": {"aud": "other"}, "no audience": {"aud": None}, "an audience in an object": {"aud": {"headgate": 1}},
    "another issuer": {"iss": "https://other.example"}, "no issuer": {"iss": None}, "an issuer in a list": {"iss": ["x"]},
    "not valid yet": {"nbf": 4e9}, "issued later": {"iat": 4e9}, "never ends": {"exp": None}, "ends as text": {"exp": "9999999999"},
    "ends as truth": {"exp": True},
}  # fmt: skip


@pytest.mark.parametrize("claims", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_a_signed_token_with_other_claims_is_refused(worker: Worker, claims: dict):
    assert await worker.ask(worker.provider.token()) == "ada"
    assert await worker.ask(worker.provider.token(**claims)) == "invalid_token"


@pytest.mark.parametrize("claims", [{"team": None}, {"team": []}, {"team": 7}, {"team": "a\n"}, {"team": "x" * 129}, {"sub": None}, {"sub": ""}, {"sub": ["ada"]}])  # fmt: skip
async def test_a_token_without_a_name_or_a_team_may_not_call(worker: Worker, claims: dict):
    """It is valid: the operator of the provider can change that, so that it is 403."""
    assert await worker.ask(worker.provider.token(**claims)) == "token_not_allowed"


def forged(provider: Provider, header: dict, signature: bytes = b"", claims: dict | None = None) -> str:
    parts = f"{segment(header)}.{segment(claims or provider.claims())}"
    if header.get("alg", "").startswith("HS"):
        signature = hmac.digest(signature, parts.encode(), "sha256")
    return f"{parts}.{segment(signature)}"


async def test_forged_tokens_are_refused(worker: Worker):
    """None of them causes a request to an address of its own."""
    provider = worker.provider
    valid = provider.token()
    await worker.ask(valid)
    header, payload, signature = valid.split(".")
    evil = public_jwk("ES256", "evil")
    twice = b'{"sub":"ada",' + orjson.dumps(provider.claims(sub="root"))[1:]
    pem = orjson.dumps(provider.keys[0])
    attacks = {
        "none": forged(provider, {"alg": "none"}),
        "none, spelt otherwise": forged(provider, {"alg": "nOnE", "kid": "first"}),
        "the public key as a secret": forged(provider, {"alg": "HS256", "kid": "first"}, pem),
        "no signature": f"{header}.{payload}.",
        "a changed payload": f"{header}.{segment(provider.claims(sub='root'))}.{signature}",
        "a cut signature": valid[:-4],
        "an own key in the header": provider.token("evil", headers={"kid": "first", "jwk": evil}),
        "an own address": provider.token("evil", headers={"kid": "first", "jku": f"{provider.address}/evil", "x5u": f"{provider.address}/evil"}),
        "a critical extension": provider.token(headers={"crit": ["exp"]}),
        "a detached payload": provider.token(headers={"b64": True}),
        "a name twice": provider.sign(twice),
        "no object": provider.sign(b"[1]"),
        "not a number": provider.sign(orjson.dumps(provider.claims()).replace(b'"aud"', b'"x":NaN,"aud"')),
        "another algorithm than that of the key": provider.token(headers={"alg": "ES384"}),
        "characters that no token has": valid[:-1] + "!",
        "a long name of a key": provider.token(headers={"kid": "k" * 300}),
        "the name of a key in a list": forged(provider, {"alg": "ES256", "kid": ["first"]}),
        "deeply nested": forged(provider, {"alg": "ES256", "kid": "first"}, claims={"iss": []}).replace(segment({"iss": []}), segment(b"[" * 30_000)),
        "a megabyte": provider.token(x="y" * 2**20),
        "too long for the issuer": provider.token(x="y" * 16_384),
        "of too many values": provider.token(x=[{}] * 1_000),
        "three dots": "..",
    }  # fmt: skip
    asked = len(provider.requests)
    found = {name: await worker.ask(token) for name, token in attacks.items()}

    assert found == dict.fromkeys(attacks, "invalid_token")
    assert (len(provider.requests), await worker.ask(valid)) == (asked, "ada")


async def test_only_the_algorithms_of_the_config_are_accepted(provider: Provider):
    provider.keys += [public_jwk(algorithm, algorithm) for algorithm in ("RS256", "ES384", "ES512", "EdDSA")]
    every, few = Worker(provider), Worker(provider, algorithms=["EdDSA"])
    tokens = [provider.token(name, name) for name in ("RS256", "ES384", "ES512", "EdDSA")]
    tokens += [
        provider.token("RS256", "RS256", headers={"alg": "RS512"}),
        provider.token("EdDSA", "EdDSA", headers={"kid": None}),
    ]
    found = [[await worker.ask(token) for token in tokens] for worker in (every, few)]
    for worker in (every, few):
        await worker.sign_in.close()

    refused = "invalid_token"
    assert found == [["ada"] * 4 + [refused, "ada"], [refused] * 3 + ["ada", refused, "ada"]]


async def test_a_token_ends_with_its_time_and_its_clock_skew(worker: Worker):
    """A clock that is set back or forward counts as it stands; a token that is remembered ends too."""
    token, late, early = (worker.provider.token(**more) for more in ({}, {"exp": 1}, {"nbf": int(worker.clock()) + 59}))
    found = []
    for worker.now in (0, 659, 661, 1e6, -59, 0):
        found.append(await worker.ask(token))

    assert found == ["ada", "ada", "token_expired", "token_expired", "ada", "ada"]
    assert [await worker.ask(late), await worker.ask(early)] == ["token_expired", "ada"]


async def test_a_new_key_is_fetched_once_for_all_and_made_up_names_cause_no_more(worker: Worker):
    """One that is no more published ends what was signed with it."""
    provider = worker.provider
    old = provider.token()
    assert await worker.ask(old) == "ada"
    asked = len(provider.requests)
    provider.keys = [public_jwk("ES256", "second")]
    worker.monotonic += issuer_keys.MIN_REFETCH_S
    new = provider.token("second")
    found = await asyncio.gather(*(worker.ask(new) for _ in range(50)), worker.ask(provider.token("absent")))
    fetched = len(provider.requests) - asked
    others = [await worker.ask(provider.token(f"made-up-{number}")) for number in range(20)]

    assert (found, fetched) == (["ada"] * 50 + ["invalid_token"], 2)
    assert others == ["issuer_unavailable"] * 20
    assert await worker.ask(provider.token("absent")) == "invalid_token"
    assert (await worker.ask(old), len(provider.requests) - asked) == ("issuer_unavailable", 2)


async def test_while_the_issuer_is_away_its_last_keys_are_used_for_a_time(worker: Worker, logged):
    """A wrong signature is 401, a key that is not known 503; when the keys are too old, they are used no more."""
    provider = worker.provider
    known, forged_one = provider.token(), provider.token("second", headers={"kid": "first"})
    assert await worker.ask(known) == "ada"
    await provider.stop()
    steps = []
    for seconds in (issuer_keys.MIN_REFETCH_S, 86_000, 400):
        worker.monotonic += seconds
        await worker.keys.refresh()
        steps.append([await worker.ask(token) for token in (known, forged_one, provider.token("second"))])
        words = worker.keys.word
    await provider.start()
    worker.monotonic += issuer_keys.MIN_REFETCH_S

    away = "issuer_unavailable"
    assert steps == [["ada", "invalid_token", away]] * 2 + [[away] * 3]
    assert (words, await worker.ask(known), worker.keys.word) == ("down", "ada", "up")
    events = [line["event"] for line in logged if line["event"].startswith("issuer.")]
    assert events == ["issuer.keys_fetched", "issuer.unavailable", "issuer.unavailable", "issuer.keys_fetched"]


async def test_a_token_of_an_issuer_that_was_removed_is_refused_at_once(worker: Worker):
    """One that stays keeps its keys."""
    table, token = worker.keys.table, worker.provider.token()
    assert await worker.ask(token) == "ada"
    asked = len(worker.provider.requests)
    worker.sign_in.replace([table])
    kept = await worker.ask(token), len(worker.provider.requests) - asked
    worker.sign_in.replace([])

    assert (kept, await worker.ask(token)) == (("ada", 0), "invalid_token")


@pytest.mark.parametrize("fault", ["stop", "garbage", "hang", "redirect", "many"])
async def test_a_gateway_starts_without_its_issuer_and_goes_on_when_it_is_there(
    start_gateway, upstream: FakeUpstream, provider: Provider, monkeypatch: pytest.MonkeyPatch, fault: str
):
    """Callers with keys are answered meanwhile; a token gets 503 with `Retry-After`, and a message that says who can help."""
    answers = {
        "garbage": b"\x00[",
        "hang": provider.hang,
        "redirect": redirect,
        "many": {"keys": provider.keys * 10_000},
    }
    if fault == "stop":
        await provider.stop()
    provider.answers = {"/keys": answers.get(fault)}
    caller = {"name": "batch", "key_sha256": hashlib.sha256(b"sk-batch").hexdigest()}
    tables = tables_for(upstream, caller=[caller], issuer=[provider.table(timeout_s=0.3)])
    gateway = await start_gateway(tables)
    away = await ask(gateway, post(api_key=provider.token()))
    known = await ask(gateway, post(api_key="sk-batch"))
    provider.answers = {}
    if fault == "stop":
        await provider.start()
    async with asyncio.timeout(20):
        while (status := (await ask(gateway, post(api_key=provider.token()))).status) == 503:
            await pause()

    assert (away.status, away.error["code"], known.status, status) == (503, "issuer_unavailable", 200, 200)
    assert 1 <= int(away.headers["retry-after"]) <= 5
    assert "the issuer 'corp'" in away.error["message"]
    assert "the operator of this gateway" in away.error["message"]


async def redirect(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/elsewhere"})


async def test_a_connection_ends_when_its_token_does(
    start_gateway, upstream: FakeUpstream, provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "IDENTIFY_S", 0.05)
    gateway = await start_gateway(tables_for(upstream, issuer=[provider.table(clock_skew_s=0)]))
    ends_at = int(time.time()) + 2
    async with calling(gateway, Authorization=f"Bearer {provider.token(exp=ends_at)}") as caller:
        first = (await caller.ask())["type"]
        error = await caller.read()
        code = await caller.closed()

    assert time.time() >= ends_at
    assert (first, error["status"], error["error"]["code"], code) == ("response.completed", 401, "token_expired", 1008)


async def test_a_reload_removes_and_adds_issuers(start_gateway, upstream: FakeUpstream, provider: Provider, logged):
    """An open gateway that gets one is closed from then on."""
    tables = tables_for(upstream) | {"server": {"port": 0, "drain_s": 0}}

    def read(running: Config | None) -> Config:
        return build(tables, running)

    wanted = Reloading(read)
    gateway = await start_gateway(tables, reloading=wanted)

    async def reload(**more: object) -> tuple[int, int]:
        tables.update(more)
        before = sum(line["event"] == "config.reloaded" for line in logged)
        wanted.wanted.set()
        await until(lambda: sum(line["event"] == "config.reloaded" for line in logged) > before)
        token = await ask(gateway, post(api_key=provider.token()))
        return token.status, (await ask(gateway, post())).status

    found = [await reload(issuer=[provider.table()])]
    found.append(await reload(issuer=[provider.table(audience="other")]))
    found.append(await reload(issuer=[provider.table(url="https://other.example")]))

    assert found == [(200, 401), (401, 401), (401, 401)]
