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
    assert found.model_copy(update={"digest": None}) == build(tomllib.loads(MINIMAL))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[server", "gateway.toml: not TOML: "),
        (b"a = 1\na = 2", "gateway.toml: not TOML: "),
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
