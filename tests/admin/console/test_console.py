"""The pages of the console, as they are sent."""

import io
import itertools
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from proxy.admin.console.forms import FORMS
from proxy.admin.console.pages import PAGES
from tests.conftest import tables_for
from tests.operators import KEYS, OPERATORS, Console, console_tables, start_console
from tests.timeouts import ask_until, pause

WORDS = ["alert(1)", "<script>{}</script>", "<img src=x onerror={}>", '"><svg onload={}>', "' onmouseover='{}",
         '" autofocus onfocus="{}', "javascript:{}", "</title><script>{}</script>", "</textarea><script>{}</script>",
         "</style><script>{}</script>", "<!--{}-->", "--><b>{}</b>", "<![CDATA[{}]]>", "&lt;b&gt;{}", "&#60;b&#62;{}",
         "{{{{ {} }}}}", "{{% raw %}}{}", "${{{}}}", "`{}`", "\\u003cscript\\u003e{}", "%3Cscript%3E{}", "+ADw-script{}",
         "<iframe srcdoc='{}'>", "<a href=javascript:{}>x</a>", "<base href=//e/>{}", "<meta http-equiv=refresh {}>",
         "<form action=//e>{}", "<input name=csrf value={}>", "<details open ontoggle={}>", "<math><mi>{}</mi></math>",
         "<svg><script>{}</script></svg>", "<template>{}</template>", "<x {}", '<p class="{}', "</td></tr><tr><td>{}",
         "</code></main>{}", "';{}//", '");{}//', "<b>{}</b>", "\u2028<i>{}</i>"]  # fmt: skip
HOSTILE = [word.format("alert(1)") if "{" in word else word for word in WORDS]


class Shape(HTMLParser):
    """The elements of a page with the names of their attributes, without any text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    return await start_console(start_gateway, console_tables(upstream, tmp_path, monkeypatch), logged, http)


@pytest.fixture
async def browser(console: Console):
    """A client that keeps cookies, as a browser does, but follows no redirects by itself."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def refuse(_: object) -> aiohttp.web.Response:
    return aiohttp.web.json_response({"error": {"message": "No.", "type": "server_error"}}, status=500)


async def sign_in(browser: aiohttp.ClientSession, console: Console, who: str = "owner", goal: str = "/admin/") -> str:
    """Sign in, and return where that leads to."""
    address = f"{console.admin}/admin/sign-in?next={quote(goal, safe='')}"
    async with browser.post(address, data={"key": KEYS[who]}, allow_redirects=False) as answer:
        return answer.headers.get("Location", str(answer.status))


async def load(browser: aiohttp.ClientSession, console: Console, path: str) -> tuple[int, str]:
    async with browser.get(URL(f"{console.admin}{path}", encoded=True), allow_redirects=False) as answer:
        return answer.status, await answer.text()


async def send(browser: aiohttp.ClientSession, console: Console, path: str, **fields: str) -> tuple[int, str]:
    """Send a form, with the token of the first page unless another one is given."""
    if "csrf" not in fields:
        _, text = await load(browser, console, "/admin/try")
        fields["csrf"] = re.findall(r'name="csrf" value="([^"]+)"', text)[0]
    async with browser.post(f"{console.admin}{path}", data=fields, allow_redirects=False) as answer:
        return answer.status, await answer.text() + answer.headers.get("Location", "")


@pytest.mark.parametrize("who", list(KEYS))
async def test_every_page_is_shown_to_those_who_may_see_it(console: Console, browser, who):
    """Pages about all teams are not in the menu of an operator of one, and are refused."""
    _, made = await console.call("ada")
    await sign_in(browser, console, who)
    for page in PAGES:
        is_for = OPERATORS[who]["role"] in page.roles and not (page.is_global and "team" in OPERATORS[who])
        status, text = await load(browser, console, page.path.replace("{id}", made))
        assert status == (200 if is_for else 403)
        assert (f'<a href="{page.path}"' in text) == (page.in_menu and is_for)
    assert (await load(browser, console, "/admin/none"))[0] == 404
    assert (await load(browser, console, "/admin/requests/none"))[0] == 404
    assert (await load(browser, console, "/admin/requests?limit=x"))[0] == 400


async def test_settings_are_shown_as_the_config_has_them(upstream, start_gateway, logged, http, tmp_path, monkeypatch):
    """Not as Python writes them."""
    policy = {"use": "models", "allow": ["gpt-*"], "aliases": {"fast": "gpt-5"}}
    tables = console_tables(upstream, tmp_path, monkeypatch) | {"policy": [policy]}
    console = await start_console(start_gateway, tables, logged, http)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        await sign_in(browser, console)
        _, text = await load(browser, console, "/admin/policies")

    assert "<code>[&#34;gpt-*&#34;]</code>" in text
    assert "<code>{fast = &#34;gpt-5&#34;}</code>" in text


async def test_a_target_whose_last_call_failed_is_not_shown_as_healthy(console: Console, browser, upstream):
    """Though it is asked further: its breaker opens after several faults only."""
    await sign_in(browser, console)
    found = []
    for status in (200, 500):
        if status == 500:
            upstream.answer = refuse
        await console.call("ada", input=f"{status}")
        pages = [(await load(browser, console, path))[1] for path in ("/admin/targets", "/admin/")]
        found += [[word in page for word in (">healthy<", ">failing<")] for page in pages]

    assert found == [[True, False]] * 2 + [[False, True]] * 2


async def test_pages_have_headers_that_bind_browsers(console: Console, browser):
    """No foreign script or style, no frame, no copy in a cache."""
    await sign_in(browser, console)
    async with browser.get(f"{console.admin}/admin/") as answer:
        text = await answer.text()
    async with browser.get(f"{console.admin}/admin/static/console.css") as style:
        assert (style.status, style.content_type) == (200, "text/css")

    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert (answer.headers["X-Frame-Options"], answer.headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
    assert (answer.headers["Cache-Control"], answer.headers["Referrer-Policy"]) == ("no-store", "same-origin")
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src)", text)
    assert (await load(browser, console, "/admin/static/../pages.py"))[0] == 404


async def test_a_browser_is_led_to_the_sign_in_and_back(console: Console, browser):
    """To the page that it wanted, and to no other site; the cookie is for this site only."""
    async with browser.get(f"{console.admin}/admin/keys?x=1", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/admin/sign-in?next=%2Fadmin%2Fkeys%3Fx%3D1")
    goals = {"/admin/keys": "/admin/keys", "/admin/spend?by=a,b": "/admin/spend?by=a,b", "//evil.example": "/admin/", "https://evil.example": "/admin/",
             "/admin/\\evil": "/admin/", "/other": "/admin/"}  # fmt: skip
    for goal, leads_to in goals.items():
        assert await sign_in(browser, console, goal=goal) == leads_to
    address = f"{console.admin}/admin/sign-in"
    async with (
        aiohttp.ClientSession() as fresh,
        fresh.post(address, data={"key": KEYS["owner"]}, allow_redirects=False) as done,
    ):
        cookie = done.headers["Set-Cookie"]
    assert re.fullmatch(r"headgate_session=[\w.=-]+; Path=/admin; Max-Age=28800; HttpOnly; SameSite=Strict", cookie)
    async with aiohttp.ClientSession() as fresh, fresh.post(address, data={"key": "guess"}) as refused:
        assert (refused.status, "This is no key" in await refused.text()) == (401, True)


async def test_signing_out_ends_the_session(console: Console, browser):
    """The next page asks for a key again."""
    await sign_in(browser, console)
    assert (await send(browser, console, "/admin/sign-out"))[0] == 303
    assert (await load(browser, console, "/admin/"))[0] == 303


async def test_a_link_of_another_site_leads_to_a_page(console: Console, browser):
    """Browsers leave the cookie out on the way there, so the page loads itself once more."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with browser.get(f"{console.admin}/admin/requests?caller=ada", headers=headers) as answer:
        text = await answer.text()

    assert answer.status == 200
    assert 'content="0; url=/admin/requests?caller=ada"' in text


@pytest.mark.parametrize("path", ["/admin/sign-out", *FORMS])
@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"csrf": ""}, {}, 403),
        ({"csrf": "guess"}, {}, 403),
        ({}, {"Origin": "https://evil.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({}, {"Host": "evil.example"}, 421),
        ({}, {"Content-Type": "text/plain"}, 415),
    ],
)
async def test_forms_of_other_sites_are_refused(console: Console, browser, path, fields, headers, status):
    """Without the token of the session nothing is done, nor with a foreign Origin."""
    await sign_in(browser, console)
    _, text = await load(browser, console, "/admin/try")
    token = {"csrf": re.findall(r'name="csrf" value="([^"]+)"', text)[0]}
    async with browser.post(f"{console.admin}{path}", data=token | fields, headers=headers) as answer:
        assert answer.status == status


CHANGES = (
    ("/admin/keys", {"action": "create", "name": "eve", "team": "search", "days": "1"}),
    ("/admin/keys", {"action": "rotate", "id": "KEY", "overlap": "0"}),
    ("/admin/keys", {"action": "revoke", "id": "KEY"}),
    ("/admin/config", {"action": "compare", "text": ""}),
    ("/admin/config", {"action": "reload"}),
    ("/admin/cache", {"model": "m"}),
    ("/admin/targets", {"action": "drain", "name": "fake"}),
    ("/admin/targets", {"action": "restore", "name": "fake"}),
    ("/admin/operators", {"operator": "owner"}),
)


async def test_a_viewer_can_change_nothing(console: Console, browser):
    """By no form, and no page has one; the audit shows what the owner did only."""
    _, made = await console.ask("POST", "/keys", {"name": "bob", "team": "search"})
    await sign_in(browser, console, "viewer")
    for path, fields in CHANGES:
        status, _ = await send(
            browser, console, path, **{**fields, **({"id": made["key"]["id"]} if "id" in fields else {})}
        )
        assert status == 403
    for page in PAGES:
        _, text = await load(browser, console, page.path.replace("{id}", "none"))
        assert re.findall(r'method="post" action="([^"]+)"', text) in (
            ["/admin/sign-out"],
            ["/admin/sign-out", "/admin/try"],
        )
    _, keys = await console.ask("GET", "/keys")
    _, audit = await console.ask("GET", "/audit")

    assert [key["status"] for key in keys["keys"]] == ["valid"]
    changes = [entry for entry in audit["entries"] if entry["operator"] == "viewer"]
    assert [entry["event"] for entry in changes] == ["operator.signed_in"]
    assert {path for path, _ in CHANGES} | {"/admin/try"} == set(FORMS)  # a trial changes nothing


async def test_forms_do_what_they_say(console: Console, browser):
    """What a form cannot do is on its page, beside what was there."""
    await sign_in(browser, console)
    status, text = await send(browser, console, "/admin/keys", **CHANGES[0][1], models="gpt-* o3", tags="project=x")
    secret = re.findall(r"hg_\w+", text)[0]
    _, listed = await console.ask("GET", "/keys")
    key = listed["keys"][0]

    assert (status, key["models"], key["tags"]) == (200, ["gpt-*", "o3"], {"project": "x"})
    assert secret not in (await load(browser, console, "/admin/keys"))[1]
    assert (await send(browser, console, "/admin/keys", action="revoke", id=key["id"])) == (
        303,
        "/admin/keys?notice=revoked",
    )
    status, text = await send(browser, console, "/admin/keys", action="revoke", id=key["id"])
    assert (status, "is revoked already" in text, key["id"] in text) == (409, True, True)
    assert (await send(browser, console, "/admin/targets", **CHANGES[6][1]))[0] == 303
    assert "drained" in (await load(browser, console, "/admin/targets?notice=drained"))[1]
    assert (await send(browser, console, "/admin/cache", model="m"))[0] == 303
    assert (await send(browser, console, "/admin/cache"))[0] == 400
    assert "not TOML" in (await send(browser, console, "/admin/config", action="compare", text="x"))[1]
    assert "is not JSON" in (await send(browser, console, "/admin/try", body="{"))[1]
    assert (await send(browser, console, "/admin/keys", action="create", name="x", team="t", days="soon"))[0] == 400
    _, text = await send(browser, console, "/admin/try", body='{"model": "m", "input": "Hi"}', caller="ada")
    assert "The body that would be sent" in text


async def test_hostile_texts_appear_only_escaped(console: Console, browser):
    """A page has the same elements and attributes with them as with a plain word."""
    await sign_in(browser, console)

    async def shapes(text: str) -> list[list[Any]]:
        _, made = await console.call("ada", model=text, metadata={"k" * 65: text})
        found = [f"/admin/requests/{made}", f"/admin/requests?model={quote(text)}", f"/admin/audit?request_id={made}"]
        found += [f"/admin/models?model={quote(text)}&caller={quote(text)}", f"/admin/none{quote(text)}"]
        # A thread writes the entries.
        await ask_until(lambda: console.ask("GET", f"/audit?request_id={made}"), lambda answer: answer[1]["entries"])
        pages = [(await load(browser, console, path))[1] for path in found]
        pages.append(
            (await send(browser, console, "/admin/try", body=orjson.dumps({"model": text}).decode(), caller=text))[1]
        )
        pages.append((await send(browser, console, "/admin/try", body=text))[1])
        pages.append((await send(browser, console, "/admin/config", action="compare", text=text))[1])
        return [Shape(page).tags for page in pages]

    plain = await shapes("plain word")
    assert len(HOSTILE) == 40
    for text in HOSTILE:
        assert await shapes(text) == plain, text


async def test_names_of_keys_appear_only_escaped(console: Console, browser):
    """Each row of the table has the same elements."""
    await sign_in(browser, console)
    for text in HOSTILE:
        if text.isprintable():
            status, _ = await console.ask("POST", "/keys", {"name": text, "team": "search", "models": [text]})
            assert status == 201
    _, text = await load(browser, console, "/admin/keys")
    rows = text.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]

    assert len(rows) == len([text for text in HOSTILE if text.isprintable()])
    assert len({str(Shape(row).tags) for row in rows}) == 1


async def test_the_first_page_moves(console: Console, browser):
    """By events that have the same part of the page, drawn anew."""
    await sign_in(browser, console)
    async with browser.get(f"{console.admin}/admin/live") as events:
        lines = []
        while (line := (await events.content.readline()).decode()) != "\n":
            lines.append(line)

    assert events.content_type == "text/event-stream"
    assert all(line.startswith("data: ") for line in lines)
    assert '<dl class="tiles">' in "".join(lines)


async def test_no_sign_in_is_shown_where_none_is_needed(upstream, start_gateway, logged, http, browser):
    """Forms still need the token of a page."""
    local = await start_console(start_gateway, tables_for(upstream, admin={"port": 0}), logged, http)
    status, text = await load(browser, local, "/admin/targets")

    assert (status, "Sign out" in text) == (200, False)
    assert (await send(browser, local, "/admin/targets", action="drain", name="fake"))[0] == 303
    assert (await send(browser, local, "/admin/targets", action="drain", name="fake", csrf="x"))[0] == 403
    public = await start_console(
        start_gateway, tables_for(upstream, admin={"port": 0, "host": "0.0.0.0"}), logged, http
    )
    status, text = await load(browser, public, "/admin/")
    assert (status, "[[admin.key]]" in text) == (403, True)


async def test_a_session_alone_changes_nothing_by_the_api(console: Console, browser):
    """The cookie that a browser adds by itself is not enough, whether it says where a request is from or not."""
    await sign_in(browser, console)
    _, page = await load(browser, console, "/admin/try")
    token = re.findall(r'name="csrf" value="([^"]+)"', page)[0]
    order = {"name": "eve", "team": "search"}
    statuses = []
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": console.admin}, {"X-CSRF-Token": token}):
        async with browser.post(f"{console.admin}/admin/v1/keys", json=order, headers=headers) as answer:
            statuses.append(answer.status)

    assert statuses == [403, 403, 403, 201]


async def test_labels_and_codes_appear_only_escaped(console: Console, browser, upstream):
    """What callers and upstreams send is in rows of spend, budgets, targets and requests, all of the same elements."""
    codes = itertools.cycle(HOSTILE)

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "x", "code": next(codes)}}, status=400)

    await sign_in(browser, console)
    for text in HOSTILE:
        await console.call("ada", metadata={"project": text}, user=text, input=text)
    upstream.answer = answer
    for text in HOSTILE:
        await console.call("cleo", input=f"again {text}")
    while (await console.ask("GET", "/spend"))[1]["total"]["calls"] < 2 * len(HOSTILE):
        await pause()
    pages = {
        path: (await load(browser, console, path))[1]
        for path in ("/admin/spend?by=project", "/admin/requests", "/admin/targets", "/admin/policies", "/admin/")
    }

    counts = {path: page.count("alert(1)") for path, page in pages.items()}
    assert counts["/admin/spend?by=project"] >= len(HOSTILE), counts
    for path, page in pages.items():
        shape = Shape(page).tags
        assert not [tag for tag, names in shape if any(name.startswith("on") for name in names)], path
        assert not {"img", "iframe", "b", "i", "template", "math", "base"} & {tag for tag, _ in shape}, path
        assert len([tag for tag, _ in shape if tag in ("script", "form", "svg")]) == len(
            re.findall(r"<(?:script|form|svg)[ >]", page)
        ), path
    rows = [str(Shape(row).tags) for row in _rows(pages["/admin/spend?by=project"])[: len(HOSTILE)]]
    assert len(set(rows)) == 1


def _rows(page: str) -> list[str]:
    return page.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]


@pytest.mark.parametrize(
    "path",
    [
        "/admin/static/../pages.py", "/admin/static/..%2fpages.py", "/admin/static/%2e%2e/pages.py",
        "/admin/static//etc/passwd", "/admin/static/console.css%00", "/admin/static/console.css/..",
        "/admin/static/..%5cpages.py", "/admin/static/", "/admin/static/templates/base.html", "/admin//static/x",
    ],
)  # fmt: skip
async def test_no_other_file_is_sent(console: Console, browser, path):
    """Only the three files that pages refer to, by their plain names."""
    await sign_in(browser, console)
    status, text = await load(browser, console, path)

    assert (status, "import" in text or "root:" in text) == (404, False)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("&".join(f"f{number}=x" for number in range(100)), 400),
        ("csrf=" + "x" * 1_100_000, 413),
        ("csrf=%ff%fe%00", 403),
        ("=&&=&%", 403),
        ("", 403),
    ],
)
async def test_what_is_no_form_of_a_page_is_refused(console: Console, browser, logged, data, status):
    """Too many fields, too much text, bytes that are no text."""
    await sign_in(browser, console)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with browser.post(f"{console.admin}/admin/keys", data=io.BytesIO(data.encode()), headers=headers) as answer:
        assert answer.status == status
    assert [line for line in logged if line["event"] == "admin.crashed"] == []


@pytest.mark.parametrize(
    "query", ["?" + "a=b&" * 1000, "?caller=" + "x" * 5000, "?since=%00", "?limit=1e9", "?%ff=%ff"]
)
async def test_an_address_that_is_not_valid_is_a_page(console: Console, browser, logged, query):
    """With what is wrong, and the status of that."""
    await sign_in(browser, console)
    status, text = await load(browser, console, f"/admin/requests{query}")

    assert (status, 'role="alert"' in text) == (400, True)
    assert [line for line in logged if line["event"] == "admin.crashed"] == []
