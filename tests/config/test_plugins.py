"""use = "name" -> the one class of that module."""

import sys
from pathlib import Path

import pytest

from backends import Backend
from backends.replay import Replay
from policies import Policy
from policies.metadata_limits import MetadataLimits
from proxy.config.plugins import load
from proxy.stores import Store
from proxy.stores.memory import MemoryStore

QUOTA = "from policies import Policy\nclass Quota(Policy):\n    most: int = 3\n"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of one's own modules; what is loaded from it is forgotten again."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_test").mkdir()
    yield tmp_path / "acme_test"
    for name in [name for name in sys.modules if name.split(".")[0] == "acme_test"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("use", "room", "kind", "found"),
    [
        ("metadata_limits", "policies", Policy, MetadataLimits),
        ("policies.metadata_limits", "policies", Policy, MetadataLimits),
        ("replay", "backends", Backend, Replay),
        ("memory", "proxy.stores", Store, MemoryStore),
    ],
)
def test_a_name_finds_the_class_of_its_module(use: str, room: str, kind: type, found: type):
    """The file's name is the word in the config; a path with dots works as well."""
    assert load(use, room, kind) is found


def test_a_module_of_your_own_is_found(room: Path):
    """Nothing need be registered anywhere; classes that it only imports do not count."""
    (room / "quota.py").write_text(QUOTA + "from policies.metadata_limits import MetadataLimits\n")

    assert load("acme_test.quota", "policies", Policy).__name__ == "Quota"


@pytest.mark.parametrize(
    "use",
    [
        "_template",
        "policies._template",
        "",
        ".",
        "a..b",
        "/etc/passwd",
        "../policies/x",
        "a-b",
        "1a",
        "a b",
        "x.",
        "__main__",
        "os;x",
    ],
)
def test_what_is_no_name_of_a_module_is_not_loaded(use: str):
    """Private modules neither: they are there to be copied."""
    with pytest.raises(ValueError, match="is not the name of a module"):
        load(use, "policies", Policy)


@pytest.mark.parametrize(
    "use", ["metadata_limit", "acme_test.quota", "policies.nothing", "nothing.at.all", "metadata_limits.deeper"]
)
def test_a_module_that_is_not_there_is_named(use: str):
    """In full, so that the room is seen."""
    with pytest.raises(ValueError, match=rf"^there is no module .*{use}$"):
        load(use, "policies", Policy)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("X = 1\n", 0), (QUOTA + QUOTA.replace("Quota", "Other"), 2)])
def test_a_module_defines_one_class(room: Path, text: str, count: int):
    """None or two leave open which is meant."""
    (room / f"count{count}_{len(text)}.py").write_text(text)

    with pytest.raises(ValueError, match=rf"defines {count} classes of Policy; it must define one$"):
        load(f"acme_test.count{count}_{len(text)}", "policies", Policy)


def test_a_class_of_another_kind_is_none():
    """A policy is no backend."""
    with pytest.raises(ValueError, match="defines 0 classes of Backend"):
        load("policies.metadata_limits", "backends", Backend)


@pytest.mark.parametrize("missing", ["nobody_has_this", "acme", "acme_test_2", "acme_test.other"])
def test_what_a_module_lacks_is_not_taken_for_the_module(room: Path, missing: str):
    """The module is there; the error says what it could not import, whatever the names have in common."""
    (room / "broken.py").write_text(f"import {missing}\n")

    with pytest.raises(ModuleNotFoundError) as caught:
        load("acme_test.broken", "policies", Policy)

    assert caught.value.name == missing


def test_a_module_that_breaks_says_how(room: Path):
    """Its own error is the best there is."""
    (room / "crash.py").write_text("1 / 0\n")

    with pytest.raises(ZeroDivisionError):
        load("acme_test.crash", "policies", Policy)


def test_a_class_that_lacks_something_is_refused(room: Path):
    """By the name of what is missing, as the config is read and not in the middle of a call."""
    (room / "half.py").write_text(
        "from proxy.stores import Store\nclass Half(Store):\n    async def get(self, key): ...\n"
    )

    missing = "append, claim, delete, give, put, release, scan, tail, take"
    with pytest.raises(ValueError, match=f"does not implement {missing}, which every Store must have"):
        load("acme_test.half", "proxy.stores", Store)
