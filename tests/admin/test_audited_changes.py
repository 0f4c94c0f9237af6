"""What changes the gateway is in the audit: each config that it serves, and what operators do by the admin API."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy import gateway
from proxy.app import running
from proxy.config.build import read
from proxy.config.source_file import SourceFile
from proxy.reloading import Reloading
from tests.conftest import CANNED
from tests.metrics import admin_of
from tests.operators import KEYS, Console
from tests.raw import until

HEAD = """
[server]
port = 0
drain_s = 0
[admin]
port = 0
[[admin.key]]
name = "olga"
role = "owner"
key = "env:TEST_OWNER_KEY"
[state]
use = "memory"
[audit]
path = "{folder}/audit.jsonl"
[[caller]]
name = "ada"
key = "file:{folder}/ada"
[[policy]]
use = "size"
max_items = {items}
[[policy]]
use = "safety_identifier"
require = true
"""
Lines = list[dict[str, Any]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a config with an audit, a policy, and a caller whose key is in another file."""
    monkeypatch.setenv("TEST_OWNER_KEY", KEYS["owner"])
    (tmp_path / "ada").write_text("a-key-of-ada-0123456789")
    write(tmp_path / "headgate.toml", 5)
    return tmp_path / "headgate.toml"


def write(file: Path, items: object) -> str:
    """Write the config, and return the SHA-256 of its file."""
    file.write_text(HEAD.format(folder=file.parent, items=items) + CANNED)
    return SourceFile.read(file).digest


def lines_in(path: Path) -> Lines:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def serve_again(logged: Lines, wanted: asyncio.Event) -> None:
    """Let the gateway read its config again, as SIGHUP does, and wait until it has."""

    def count() -> int:
        return sum(line["event"].startswith("config.reload") for line in logged)

    before = count()
    wanted.set()
    await until(lambda: count() > before)


async def test_each_config_that_is_served_is_in_the_audit_with_what_it_changes(file: Path, http, logged: Lines):
    """By SIGHUP and by an operator. One with a fault changes nothing; a secret that was replaced is not in the file."""
    reloading = Reloading(lambda running, _=None: read(file, running))
    first = write(file, 5)
    async with running(read(file), reloading=reloading) as address:
        second = write(file, 7)
        await serve_again(logged, reloading.wanted)
        await serve_again(logged, reloading.wanted)
        write(file, '"x"')
        await serve_again(logged, reloading.wanted)
        third = write(file, 9)
        await Console(address, admin_of(logged), http).ask("POST", "/config/reload", {})
        (file.parent / "ada").write_text("another-key-of-ada-012345")
        await serve_again(logged, reloading.wanted)
    served = [line for line in lines_in(file.parent / "audit.jsonl") if line.get("event") == "config.loaded"]
    ordered = lines_in(file.parent / "audit.operator.jsonl")

    assert [(line["config_sha256"], line.get("changes")) for line in served] == [
        (first, None),
        (second, "policy[size].max_items: 5 -> 7"),
        (third, "policy[size].max_items: 7 -> 9"),
        (third, "caller[ada]: a secret that it names has changed"),
    ]
    assert [(line["event"], line["operator"]) for line in ordered] == [("config.reload_ordered", "olga")]
    assert b"key-of-ada" not in (file.parent / "audit.jsonl").read_bytes()


async def test_what_a_config_changes_is_bounded(file: Path, logged: Lines, monkeypatch: pytest.MonkeyPatch):
    """A config with a thousand routes makes no line of a megabyte."""
    monkeypatch.setattr(gateway, "MAX_CHANGES_CHARS", 20)
    reloading = Reloading(lambda running, _=None: read(file, running))
    async with running(read(file), reloading=reloading):
        write(file, 7)
        await serve_again(logged, reloading.wanted)

    assert lines_in(file.parent / "audit.jsonl")[-1]["changes"] == "policy[size].max_items: 5 -> 7"[:20]


async def test_block_and_unblock_are_in_the_audit(file: Path, http, logged: Lines):
    """With the name of the operator."""
    async with running(read(file)) as address:
        console = Console(address, admin_of(logged), http)
        for change in ("block", "unblock"):
            status, _ = await console.ask("POST", f"/identifiers/{change}", {"identifier": "u-1"})
            assert status == 200
    done = lines_in(file.parent / "audit.operator.jsonl")

    assert [(line["event"], line["identifier"], line["operator"]) for line in done] == [
        ("identifier.blocked", "u-1", "olga"),
        ("identifier.unblocked", "u-1", "olga"),
    ]
