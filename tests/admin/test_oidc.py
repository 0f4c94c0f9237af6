"""Operators sign in at an issuer: the authorization code flow with PKCE, against a provider that checks it."""

import base64
import hashlib
import html
from typing import Any
from urllib.parse import parse_qsl, urlencode

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from proxy.config.build import build
from proxy.config.validation import ConfigError
from tests.browser import CHROMIUM, open_page
from tests.oidc import Provider
from tests.operators import Console, console_tables, start_console

CLIENT = "headgate-console"
ROLES = {"platform": "owner", "leads": "team_admin", "staff": "viewer", "auditors": "global_viewer"}


class LoginProvider(Provider):
    """A provider with the endpoints of the flow. `more` replaces claims, `codes` are those that it gave out."""

    def __init__(self) -> None:
        super().__init__()
        self.more: dict[str, Any] = {}
        self.padding = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.authorized: dict[str, str] | None = None
        """Replaces what the browser brings back."""

    async def start(self) -> None:
        await super().start()
        self.answers["/authorize"], self.answers["/token"] = self.authorize, self.give_token
        self.answers["/.well-known/openid-configuration"] = {
            "issuer": self.address, "jwks_uri": f"{self.address}/keys", "token_endpoint": f"{self.address}/token",
            "authorization_endpoint": f"{self.address}/authorize",
        }  # fmt: skip

    async def authorize(self, request: web.BaseRequest) -> web.Response:
        asked = dict(request.query)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        back = {"code": code, "state": asked["state"]} if self.authorized is None else self.authorized
        return web.Response(status=302, headers={"Location": f"{asked['redirect_uri']}?{urlencode(back)}"})

    async def give_token(self, request: web.BaseRequest) -> web.Response:
        fields = dict(parse_qsl((await request.read()).decode()))
        asked = self.codes.pop(fields.get("code", ""), {})
        digest = hashlib.sha256(fields["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        is_known = (asked.get("code_challenge"), asked.get("redirect_uri")) == (challenge, fields["redirect_uri"])
        if not is_known or fields["client_secret"] != "the-secret-of-the-client":
            return web.json_response({"error": "invalid_grant"}, status=400)
        claims = {"aud": CLIENT, "nonce": asked["nonce"], "groups": ["staff", "platform"]} | self.more
        return web.json_response({"access_token": self.padding, "id_token": self.token(**claims)})


@pytest.fixture
async def provider():
    async with LoginProvider() as started:
        yield started


@pytest.fixture
def tables(provider, upstream, tmp_path, monkeypatch) -> dict[str, Any]:
    monkeypatch.setenv("TEST_CLIENT_SECRET", "the-secret-of-the-client")
    oidc = {"issuer": "corp", "client_id": CLIENT, "client_secret": "env:TEST_CLIENT_SECRET", "roles": ROLES}
    tables = console_tables(upstream, tmp_path, monkeypatch, issuer=[provider.table(default_team="all")])
    tables["admin"]["oidc"] = oidc
    return tables


@pytest.fixture
async def console(tables, start_gateway, logged, http) -> Console:
    return await start_console(start_gateway, tables, logged, http)


@pytest.fixture
async def browser():
    """A client that keeps cookies, and sends them to their paths only."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def sign_in(browser: aiohttp.ClientSession, console: Console) -> tuple[int, str]:
    """Go the way of a browser; return the status and the text of the last page."""
    address = f"{console.admin}/admin/oidc/begin?next=%2Fadmin%2Fkeys"
    async with browser.get(address) as answer:
        return answer.status, await answer.text()


async def who(browser: aiohttp.ClientSession, console: Console) -> Any:
    async with browser.get(f"{console.admin}/admin/v1/me") as answer:
        found = await answer.json(content_type=None)
        return (found["role"], found["name"], found["team"]) if answer.status == 200 else answer.status


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, ("owner", "ada", "")),
        ({"groups": "leads"}, ("team_admin", "ada", "search")),
        ({"groups": ["staff"]}, ("viewer", "ada", "search")),
        ({"groups": ["auditors"]}, ("viewer", "ada", "")),
        ({"groups": ["others"]}, "names no role"),
        ({"groups": None}, "names no role"),
        ({"nonce": "another"}, "another sign-in"),
        ({"aud": "headgate"}, "another audience"),
        ({"exp": 1}, "expired"),
        ({"sub": None}, "names the caller"),
    ],
)
async def test_claims_name_the_operator_and_the_role(console: Console, provider, browser, claims, expected):
    """A token that does not hold, or names no role, opens no session."""
    provider.more = claims
    status, text = await sign_in(browser, console)

    if isinstance(expected, tuple):
        assert (status, "url=/admin/keys" in text) == (200, True)
        assert await who(browser, console) == expected
    else:
        assert (status, expected in text) == (403, True)
        assert await who(browser, console) == 401


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        ({"code": "code-0", "state": "guess"}, "begun elsewhere"),
        ({"code": "code-0"}, "begun elsewhere"),
        ({"error": "access_denied", "state": "STATE"}, "access_denied"),
        ({"code": "invented", "state": "STATE"}, "gives no token"),
    ],
)
async def test_what_the_browser_brings_back_is_checked(console: Console, provider, browser, back, expected):
    """It must belong to the sign-in that this browser began."""
    async with browser.get(f"{console.admin}/admin/oidc/begin", allow_redirects=False) as begun:
        state = URL(begun.headers["Location"]).query["state"]
    back = {name: state if value == "STATE" else value for name, value in back.items()}
    async with browser.get(f"{console.admin}/admin/oidc/callback", params=back) as answer:
        assert (answer.status, expected in await answer.text()) == (403, True)
    assert await who(browser, console) == 401


async def test_a_sign_in_ends_in_the_browser_that_began_it(console: Console, provider, browser):
    """The answer of another one, with its state and code, opens no session: its cookie is missing."""
    async with aiohttp.ClientSession() as other:
        async with other.get(f"{console.admin}/admin/oidc/begin", allow_redirects=False) as begun:
            asked = begun.headers["Location"]
        async with other.get(asked, allow_redirects=False) as authorized:
            back = authorized.headers["Location"]
    async with browser.get(back) as answer:
        assert answer.status == 403
    assert await who(browser, console) == 401


async def test_no_neighbour_of_the_domain_begins_a_sign_in(tables, provider, start_gateway, logged, http):
    """By TLS its cookie has a name that browsers take from this host only."""
    tables["admin"]["url"] = "https://gate.example"
    console = await start_console(start_gateway, tables, logged, http)
    async with http.get(f"{console.admin}/admin/oidc/begin", allow_redirects=False) as begun:
        cookie, asked = begun.headers["Set-Cookie"], begun.headers["Location"]
    async with http.get(asked, allow_redirects=False) as authorized:
        back = authorized.headers["Location"].replace("https://gate.example", console.admin)
    flow = cookie.partition(";")[0]

    assert (flow.startswith("__Host-"), "; Path=/;" in cookie, cookie.endswith("; Secure")) == (True, True, True)
    for sent, status in ((flow.removeprefix("__Host-"), 403), (flow, 200)):
        async with http.get(back, headers={"Cookie": sent}) as answer:
            assert answer.status == status
    assert [each.startswith("__Host-") for each in answer.headers.getall("Set-Cookie")] == [True, True]


async def test_an_answer_with_the_token_may_come_in_pieces(console: Console, provider, browser):
    """All of it is read: a large one is more than a socket holds."""
    provider.padding = "x" * 900_000
    assert (await sign_in(browser, console))[0] == 200
    assert await who(browser, console) == ("owner", "ada", "")

    provider.padding *= 2
    browser.cookie_jar.clear()
    assert (await sign_in(browser, console))[0] == 503


async def test_an_issuer_that_is_away_is_said_to_be(console: Console, provider, browser):
    """Keys of operators still open sessions."""
    await provider.stop()
    status, text = await sign_in(browser, console)

    assert (status, "cannot be reached" in text) == (503, True)
    async with browser.get(f"{console.admin}/admin/sign-in") as answer:
        text = await answer.text()
    assert ("Sign in with corp" in text, "Key of an operator" in text) == (True, True)


def test_the_issuer_must_exist(upstream, tmp_path, monkeypatch):
    """Its name is one of the config's."""
    tables = console_tables(upstream, tmp_path, monkeypatch)
    tables["admin"]["oidc"] = {"issuer": "corp", "client_id": CLIENT, "roles": ROLES}
    with pytest.raises(ConfigError, match=r"admin\.oidc\.issuer: there is no issuer called 'corp'"):
        build(tables)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
async def test_a_browser_signs_in(console: Console, chromium: str):
    """Its cookies for one site only survive the way over another one."""
    async with open_page(chromium) as page:
        await page.open(f"{console.admin.replace('127.0.0.1', 'localhost')}/admin/keys")
        await page.evaluate("document.querySelector('a.button').click()")
        await page.until("document.querySelector('nav') !== null && document.title.startsWith('Keys')")

        assert "ada owner" in await page.text(".who")
        assert page.faults == []


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "' autofocus onfocus='x"]
)
async def test_a_name_of_an_issuer_appears_only_escaped(console: Console, provider, browser, name):
    """In the header of each page, and in the list of sessions."""
    provider.more = {"sub": name}
    await sign_in(browser, console)
    texts = []
    for path in ("/admin/", "/admin/operators"):
        async with browser.get(f"{console.admin}{path}") as answer:
            texts.append(await answer.text())

    assert await who(browser, console) == ("owner", name, "")
    assert all(html.escape(name).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text for text in texts)
    assert all(name not in text for text in texts)
