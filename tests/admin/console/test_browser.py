"""The console in Chromium, as a person uses it, and without any error in the browser."""

import re
from collections.abc import AsyncIterator

import pytest

from proxy.admin.console.pages import PAGES
from tests.browser import CHROMIUM, BrowserPage, open_page
from tests.operators import KEYS, Console, console_tables, start_console
from tests.timeouts import ask_until, pause

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    policies = [{"use": "metadata_limits"}, {"use": "output_tokens", "max": 100}]
    policies.append({"use": "budget", "limit": 5, "unit": "requests", "per": "team"})
    tables = console_tables(upstream, tmp_path, monkeypatch, policy=policies)
    return await start_console(start_gateway, tables, logged, http)


@pytest.fixture
async def page(chromium: str) -> AsyncIterator[BrowserPage]:
    async with open_page(chromium) as opened:
        yield opened


async def sign_in(page: BrowserPage, console: Console, who: str = "owner", goal: str = "") -> None:
    await page.open(f"{console.admin}{goal or '/admin/'}")
    await page.fill(key=KEYS[who])
    await page.click("main button")


async def test_a_key_is_created_and_used(console: Console, page: BrowserPage):
    """It is shown once, works at the gateway, and is refused once it is revoked."""
    await sign_in(page, console, "search_admin", "/admin/keys")
    await page.fill(name="eve", days="30", tags="project=x")
    await page.click("main form.grid button")
    secret = await page.text("#secret")
    while (status := (await console.call_with(secret))[0]) == 401:  # the gateway reads it in a moment
        await pause()
    await page.open(f"{console.admin}/admin/keys")
    listed = await page.text("table")
    await page.evaluate("document.querySelectorAll('.actions details')[1].open = true")
    await page.click(".actions .danger")
    notice = await page.text("[role=status]")
    while (await console.call_with(secret))[0] == 200:
        await pause()

    assert (status, secret.startswith("hg_"), "eve" in listed, secret in listed) == (200, True, True, False)
    assert "revoked" in notice
    assert page.faults == []


async def test_a_refused_call_is_found_and_tried_again(console: Console, page: BrowserPage):
    """From the policies to the request, with its decision; a request that is tried is not sent."""
    _, made = await console.call("cleo", metadata={"k" * 65: "v"})
    await sign_in(page, console, "viewer", "/admin/policies")
    await page.click("a[href*='code=metadata_limits.key_too_long']")
    await page.click("table.rows tbody a")
    picture = await page.text("main")
    await page.open(f"{console.admin}/admin/try")
    await page.fill(body='{"model": "m", "input": "Hi"}', caller="ada")
    await page.click("main form button")
    tried = await page.text("main")

    assert made in picture
    assert re.search(r"metadata_limits\s+refused\s+metadata_limits\.key_too_long", picture)
    assert "max_output_tokens" in tried
    assert await page.evaluate("document.querySelector('pre.body').clientHeight") > 60
    assert page.faults == []


FAULTS = """(() => {
  const faults = [];
  const shown = (each) => each.checkVisibility() && each.getClientRects().length > 0;
  for (const each of document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea, summary")) {
    const name = each.textContent || each.ariaLabel || each.closest("label")?.textContent || each.title;
    if (shown(each) && !each.disabled && each.tabIndex !== 0) faults.push("no key reaches " + each.outerHTML);
    if (shown(each) && !name) faults.push("without a name: " + each.outerHTML);
  }
  for (const each of document.querySelectorAll("main p, main td, main h1, main dd")) {
    const [text, ground] = [each, document.body].map((one) => getComputedStyle(one));
    if (text.color === ground.backgroundColor) faults.push("unreadable: " + each.innerText);
  }
  for (const time of document.body.innerText.match(/\\d\\d:\\d\\d:\\d\\d/g) || [])
    if (!document.body.innerText.includes("UTC")) faults.push("no zone: " + time);
  if (document.querySelectorAll("h1").length !== 1) faults.push("headings");
  if (document.querySelector("[role=alert]")) faults.push(document.querySelector("[role=alert]").innerText);
  if (document.documentElement.scrollWidth > innerWidth) faults.push("wider than the window");
  return faults;
})()"""
"""What is wrong with a page: what no key reaches, what has no name, is not seen, has no zone or no room."""


async def test_every_page_works_in_every_window(console: Console, page: BrowserPage):
    """At 400 pixels and on a wide screen, in light and dark: each has its address, a heading, and no fault."""
    _, made = await console.call("ada", model="a-model-with-a-name-that-is-quite-long-and-has-no-spaces-in-it")
    await console.call("cleo", metadata={"k" * 65: "v"})
    await console.ask("POST", "/keys", {"name": "eve", "team": "search"})
    await ask_until(lambda: console.ask("GET", "/spend"), lambda answer: answer[1]["lines"])
    await sign_in(page, console)
    for width, is_dark in ((400, True), (1280, False)):
        await page.resize(width, 900, is_dark=is_dark)
        for each in PAGES:
            address = f"{console.admin}{each.path.replace('{id}', made)}"
            await page.open(address)
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")

            assert await page.evaluate("location.href") == address
            assert (await page.evaluate("document.title")).startswith(f"{each.title} · "), each.path
            assert await page.evaluate(FAULTS) == [], each.path
            assert (ground == "rgb(16, 20, 26)") == is_dark, each.path

    assert (page.faults, page.refusals) == ([], [])


async def test_a_key_and_a_target_are_changed_by_keyboard(console: Console, page: BrowserPage):
    """By Tab, Space, Enter and Escape alone."""
    await sign_in(page, console, goal="/admin/keys")
    await page.tab_to("main form.grid input[name=name]")
    await page.type("eve")
    await page.tab_to("input[name=team]")
    await page.type("search")
    await page.press("Enter")
    await page.until("document.querySelector('#secret') !== null")
    await page.tab_to(".actions details:last-child summary")
    await page.press(" ")
    await page.press("Escape")
    closed = await page.evaluate("document.querySelector('.actions details:last-child').open")
    await page.press("Enter")
    await page.tab_to(".actions .danger")
    await page.press("Enter")
    await page.until("document.querySelector('[role=status]')?.innerText.includes('revoked')")
    await page.open(f"{console.admin}/admin/targets")
    await page.tab_to("main summary")
    await page.press("Enter")
    await page.tab_to("main .danger")
    await page.press(" ")
    await page.until("document.querySelector('[role=status]')?.innerText.includes('no new calls')")
    _, keys = await console.ask("GET", "/keys")
    _, targets = await console.ask("GET", "/targets")

    assert (closed, [key["status"] for key in keys["keys"]]) == (False, ["revoked"])
    assert [target["drained"] for target in targets["targets"]] == [True]
    assert page.faults == []


async def test_spend_is_seen(console: Console, page: BrowserPage):
    """Who has used what, what it cost, the same as CSV, and what is left of the budget."""
    await console.call("ada", model="gpt-5.6", metadata={"project": "moon"})
    await ask_until(lambda: console.ask("GET", "/spend"), lambda answer: answer[1]["lines"])
    await sign_in(page, console, goal="/admin/spend?by=team,project")
    text = await page.text("main")
    csv = await page.evaluate("fetch(document.querySelector('a[download]').href).then((answer) => answer.text())")
    row = await page.text("table.rows tbody tr")

    assert re.search(r"search\s+moon\s+\$0\.0000\d\d", row)
    assert csv.splitlines()[1].startswith("search,moon,1,")
    assert re.search(r"search\s+budget:team\.requests\.\w+\s+1 requests\s+4 requests\s+5 requests", text)
    assert page.faults == []


async def test_the_first_page_moves_without_being_loaded_anew(console: Console, page: BrowserPage):
    """Calls that are made meanwhile appear in its numbers."""
    await sign_in(page, console)
    await page.until("document.querySelector('.tiles') !== null")
    for _ in range(3):
        await console.call("ada")
    await page.until("!/^0/.test(document.querySelector('.tile dt + dd').innerText)")

    assert await page.evaluate("document.querySelectorAll('.chart .line').length") > 0
    assert page.faults == []


async def test_it_works_by_keyboard(console: Console, page: BrowserPage):
    """Sign in by Enter; the first Tab leads past the menu, and what has the focus is seen."""
    await page.open(f"{console.admin}/admin/")
    await page.fill(key=KEYS["owner"])
    await page.press("Enter")
    await page.until("document.querySelector('nav') !== null")
    await page.press("Tab")
    first = await page.evaluate("document.activeElement.innerText")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    await page.press("Enter")
    target = await page.evaluate("location.hash")

    assert (first, outline, target) == ("Skip to content", "solid", "#content")
    assert page.faults == []


async def test_a_link_of_another_site_keeps_the_session(console: Console, page: BrowserPage, upstream):
    """The cookie is not sent on the way there; the page loads itself once more, and is there."""
    from aiohttp import web

    link = f"{console.admin}/admin/audit?caller=ada"

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=f'<a href="{link}">to the console</a>', content_type="text/html")

    await sign_in(page, console)
    upstream.answer = answer
    await page.open(f"{upstream.address.replace('127.0.0.1', 'localhost')}/chat")
    await page.click("a")
    await page.until("document.querySelector('nav') !== null && document.title.startsWith('Audit')")

    assert await page.evaluate("document.querySelector('[name=caller]').value") == "ada"
