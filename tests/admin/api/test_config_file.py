"""The file of the config against what is served: shown, and served by an owner."""

from pathlib import Path

import aiohttp

from proxy.app import running
from proxy.config.build import read
from proxy.reloading import Reloading
from tests.conftest import CANNED
from tests.metrics import admin_of
from tests.operators import KEYS, Console

HEAD = """
[server]
port = 0
drain_s = 0
[admin]
port = 0
[[admin.key]]
name = "owner"
role = "owner"
key = "env:TEST_OWNER_KEY"
[[admin.key]]
name = "viewer"
key = "env:TEST_VIEWER_KEY"
"""
POLICY = '[[policy]]\nuse = "size"\nmax_items = {}\n'


async def test_the_file_is_compared_and_served(tmp_path: Path, monkeypatch, http, logged):
    """What it would change, its faults, and that a fault changes nothing; the page has the same."""
    for name in ("owner", "viewer"):
        monkeypatch.setenv(f"TEST_{name.upper()}_KEY", KEYS[name])
    file = tmp_path / "headgate.toml"
    texts = {"first": POLICY.format(5), "changed": POLICY.format(7), "faulty": POLICY.format('"x"')}

    def write(name: str) -> None:
        file.write_text(HEAD + texts[name] + CANNED)

    write("first")
    async with running(read(file), reloading=Reloading(lambda config: read(file, config))) as address:
        console = Console(address, admin_of(logged), http)
        same = await console.ask("GET", "/config/changes", who="viewer")
        write("changed")
        _, changed = await console.ask("GET", "/config/changes", who="viewer")
        refused, _ = await console.ask("POST", "/config/reload", {}, "viewer")
        page = await config_page(console)
        status, served = await console.ask("POST", "/config/reload", {})
        _, policies = await console.ask("GET", "/policies")
        write("faulty")
        _, faulty = await console.ask("GET", "/config/changes")
        failed, problem = await console.ask("POST", "/config/reload", {})
        _, kept = await console.ask("GET", "/policies")

    assert same == (200, {"is_valid": True, "changes": [], "faults": [], "warnings": []})
    assert [line for line in changed["changes"] if "max_items" in line and "5" in line and "7" in line] != []
    assert ("max_items" in page, "Serve it now" in page, refused, status) == (True, True, 403, 200)
    assert served["changes"] == changed["changes"]
    assert policies["policies"][0]["settings"] == kept["policies"][0]["settings"] == {"max_items": 7}
    assert (faulty["is_valid"], "max_items" in str(faulty["faults"])) == (False, True)
    assert (failed, problem["code"], "max_items" in str(problem["errors"])) == (422, "config_invalid", True)


async def config_page(console: Console) -> str:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        address = f"{console.admin}/admin/sign-in?next=%2Fadmin%2Fconfig"
        async with browser.post(address, data={"key": KEYS["owner"]}) as answer:
            return await answer.text()
