"""Reading config files, and the default config if there is none."""

import hashlib
import tomllib
from pathlib import Path

import pytest

from backends.upstream import Upstream
from proxy.config.build import ConfigError, build, read
from proxy.config.default import DEMO, default_config
from proxy.stores.memory import MemoryStore
from tests.configs import KEY, MINIMAL


def test_a_file_is_read(tmp_path: Path):
    """It is TOML in UTF-8."""
    (tmp_path / "gateway.toml").write_text(MINIMAL)

    found = read(tmp_path / "gateway.toml")

    assert found.digest == hashlib.sha256(MINIMAL.encode()).hexdigest()
    assert found.model_copy(update={"source": None}) == build(tomllib.loads(MINIMAL))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[server", "gateway.toml: not TOML: "),
        (b"a = 1\na = 2\n", "gateway.toml:2:6: not TOML: this is there already"),
        (
            b"[[caller]]\n[caller]\n",
            "gateway.toml:2:8: not TOML: there is a table [caller] already; of one that there are several of, each is [[caller]]",
        ),
        (b"[caller]\n[[caller]]\n", "gateway.toml:2:9: not TOML: this is there already; a key is given once, and each"),
        (b"[server]\nport 8080", "gateway.toml:2:6: not TOML: Expected '=' after a key"),
        (b"a = " + b"[" * 100_000, "gateway.toml: not TOML that can be read: it is nested too deeply"),
        (b"# \xff", "gateway.toml: not TOML: 'utf-8' codec can't decode"),
        (b"a = " + b"1" * 9000, "gateway.toml: not TOML: "),
        (None, "gateway.toml: No such file or directory"),
    ],
)
def test_an_unreadable_file_is_named_in_the_error(tmp_path: Path, content: bytes | None, expected: str):
    """The error has the reason as well."""
    if content is not None:
        (tmp_path / "gateway.toml").write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "gateway.toml")

    assert expected in str(caught.value)


def test_a_file_of_windows_is_read(tmp_path: Path):
    """With its ends of lines, and the mark that its editors put before a text; places are those that an editor shows."""
    (tmp_path / "gateway.toml").write_bytes(b"\xef\xbb\xbf" + (MINIMAL + "[sever]\n").replace("\n", "\r\n").encode())

    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "gateway.toml")
    assert str(caught.value) == f"{tmp_path}/gateway.toml:10:2: sever: unknown key; did you mean server?"


FAULTY = """
[sever]
prot = 1
[server]
host = "0.0.0.0"
Port = "8080"
workers = 2
[[caller]]
name = "app"
team = "search"
key_sha256 = "00"
[[caller]]
name = "app"
team = "ads"
key_sha256 = "{digest}"
[[policy]]
use = "max_tool_call"
[[policy]]
use = "models"
callers = ["ap"]
alow = ["gpt-*"]
deny = "gpt-4"
[[policy]]
use = "size"
max_items = true
mode = "warn"
[cache]
use = "memory"
ttl = 60
[[backend]]
name = "openai"
use = "upstream"
base_url = "https://api.openai.com/v1/responses"
[[backend]]
name = "other"
use = "replay"
path = "canned.sse"
[[route]]
model = "*"
backend = "opanai"
[[route]]
model = "gpt-5"
backend = "oter"
[audit]
"odd key" = 1
[policy_x]
"""


def test_all_faults_of_a_file_are_shown_at_once(tmp_path: Path):
    """In the order of the lines, each with its line and column, and with the name that was meant."""
    path = tmp_path / "gateway.toml"
    path.write_text(FAULTY.format(digest="0" * 64))

    with pytest.raises(ConfigError) as caught:
        read(path)
    assert [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()] == [
        "2:2: sever: unknown key; did you mean server?",
        "6:1: server.Port: unknown key; did you mean port?",
        '7:1: server.workers: 2 processes cannot share [state] use = "memory"; use "sqlite" or "redis"',
        "11:1: caller[0].key_sha256: String should match pattern '^[0-9a-fA-F]{64}$'",
        "14:1: caller[1].team: 'app' is in another team in caller[0]; a caller has one team, and may have several keys",
        "17:1: policy[0].use: there is no module policies.max_tool_call; did you mean max_tool_calls?",
        "20:1: policy[1].callers: 'ap' matches no [[caller]]; did you mean app?",
        "21:1: policy[1].alow: unknown key; did you mean allow?",
        '22:1: policy[1].deny: Input should be a valid list; write ["..."], with brackets',
        "25:1: policy[2].max_items: Input should be a valid integer",
        "26:1: policy[2].mode: Input should be 'enforce', 'report' or 'off'",
        "29:1: cache.ttl: unknown key; did you mean ttl_s?",
        "33:1: backend[0].base_url: it ends in /responses, which every call adds to it; leave that out",
        "40:1: route[0].backend: there is no backend called 'opanai'; did you mean openai?",
        "42:1: route[1].model: 'gpt-5' is never reached, because route[0] has '*'; put it before that one",
        "43:1: route[1].backend: there is no backend called 'oter'; did you mean other?",
        "44:2: audit.path: missing",
        '45:1: audit."odd key": unknown key',
        "46:2: policy_x: unknown key; did you mean policy?",
    ]


def test_the_default_config_serves_the_demo_model():
    """It is part of the project and needs no other service."""
    config = default_config()

    assert [(route.model, [target.name for target in route.targets]) for route in config.routes] == [
        ("headgate-demo", ["demo"])
    ]
    assert [rule.name for rule in config.rules] == ["metadata_limits", "safety_identifier"]
    assert isinstance(config.cache_store, MemoryStore)
    assert config.server.host == "127.0.0.1"
    assert (DEMO / "model.bin").exists()


def test_with_a_key_of_openai_the_default_config_routes_other_models_there(monkeypatch: pytest.MonkeyPatch):
    """The demo model keeps its route; the key is read but not printed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = default_config()
    openai = config.backends["openai"]

    assert [(route.model, [target.name for target in route.targets]) for route in config.routes] == [
        ("headgate-demo", ["demo"]),
        ("*", ["openai"]),
    ]
    assert isinstance(openai, Upstream)
    assert openai.api_key is not None
    assert (openai.base_url, openai.keeps_state) == ("https://api.openai.com/v1", True)
    assert openai.api_key.get_secret_value() == KEY
    assert KEY not in repr(config)


def test_an_empty_key_of_openai_counts_as_none(monkeypatch: pytest.MonkeyPatch):
    """An empty variable does not prevent the start."""
    monkeypatch.setenv("OPENAI_API_KEY", "")

    assert list(default_config().backends) == ["demo"]
