"""What changes from one config to another, in lines for an operator."""

import re
import tomllib

import pytest

from proxy.config.difference import RESTARTED_SERVER_KEYS, RESTARTED_TABLES, differences, hidden_differences
from proxy.config.process_tables import ServerTable
from tests.sources import ROOT

MANUAL = (ROOT / "deploy" / "README.md").read_text()

OLD = """
[server]
port = 1
deadline_s = 5
[[backend]]
name = "one"
base_url = "https://one.example"
headers = {"x-secret" = "old"}
[[backend]]
name = "two"
api_key = "env:TWO"
[[policy]]
use = "models"
allow = ["*"]
[[policy]]
use = "size"
[[policy]]
use = "models"
deny = ["a"]
"""


@pytest.mark.parametrize(
    ("found", "replaced", "lines"),
    [
        ("", "", []),
        ("deadline_s = 5", "deadline_s = 6", ["server.deadline_s: 5 -> 6"]),
        ("deadline_s = 5", "hosts = []", ["server.deadline_s: removed", "server.hosts: added"]),
        ("port = 1", "port = 2", ["server.port: 1 -> 2 (needs a restart)"]),
        ("[server]", "[state]\nuse = 'sqlite'\n[server]", ["state: added (needs a restart)"]),
        ('"env:TWO"', '"env:NEW"', ["backend[two].api_key: 'env:TWO' -> 'env:NEW'"]),
        ('"old"', '"new"', ["backend[one].headers.x-secret: ... -> ..."]),
        ('name = "two"', 'name = "three"', ["backend[two]: removed", "backend[three]: added"]),
        ('deny = ["a"]', "deny = []", ["policy[models #2].deny: ['a'] -> []"]),
        ('["*"]', f'["{"x" * 90}"]', [f"policy[models].allow: ['*'] -> ['{'x' * 78}..."]),
        ('use = "size"', 'use = "size"\nmode = "report"', ["policy[size].mode: added, 'report'"]),
    ],
)
def test_each_key_that_differs_has_a_line(found: str, replaced: str, lines: list[str]):
    """With both values, unless they may be secret, and whether a reload is enough."""
    assert differences(tomllib.loads(OLD), tomllib.loads(OLD.replace(found, replaced))) == lines


def test_no_part_of_a_password_is_shown():
    """Also of a URL that is cut before the character by which its password is found."""
    old, new = ({"address": f"https://gateway:{'pass' * 20}{end}@one.example"} for end in "ab")

    assert differences(old, new) == [
        "address: 'https://[redacted]@one.example'... -> 'https://[redacted]@one.example'..."
    ]


def test_another_order_is_a_difference():
    """The first policy, and the first route that matches, come first."""
    old, new = ({"route": [{"model": name} for name in names]} for names in ("ab", "ba"))

    assert differences(old, new) == ["route: another order"]


def test_a_part_that_changed_without_a_line_has_another_secret():
    changed = ["backend[one]", "backend[two]", "backend[o]"]

    assert hidden_differences(changed, ["backend[one].base_url: 1 -> 2", "backend[two]: added"]) == [
        "backend[o]: a secret that it names has changed"
    ]


def test_every_key_of_the_server_that_needs_a_restart_exists():
    assert set(ServerTable.model_fields) >= RESTARTED_SERVER_KEYS


def test_the_manual_names_every_table_that_needs_a_restart():
    sentence = MANUAL.partition("A restart is needed for ")[2].partition("(needs a restart)")[0]

    assert set(re.findall(r"`\[+(\w+)\]+`", sentence)) == RESTARTED_TABLES | {"server"}
