"""How `use = "name"` loads the only class of a module."""

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
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package outside the project; its modules are unloaded after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_test").mkdir()
    yield tmp_path / "acme_test"
    for name in [name for name in sys.modules if name.split(".")[0] == "acme_test"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("use", "package", "kind", "found"),
    [
        ("metadata_limits", "policies", Policy, MetadataLimits),
        ("policies.metadata_limits", "policies", Policy, MetadataLimits),
        ("replay", "backends", Backend, Replay),
        ("memory", "proxy.stores", Store, MemoryStore),
    ],
)
def test_a_name_loads_the_class_of_its_module(use: str, package: str, kind: type, found: type):
    """The value of `use` is the short or the full name of a module."""
    assert load(use, package, kind) is found


def test_a_module_outside_the_project_is_loaded(package: Path):
    """It needs no registration; classes that it only imports do not count."""
    (package / "quota.py").write_text(QUOTA + "from policies.metadata_limits import MetadataLimits\n")

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
def test_an_invalid_module_name_is_refused(use: str):
    """Private modules are refused as well, because they are templates to copy."""
    with pytest.raises(ValueError, match="is not the name of a module"):
        load(use, "policies", Policy)


@pytest.mark.parametrize(
    "use", ["metadata_limit", "acme_test.quota", "policies.nothing", "nothing.at.all", "metadata_limits.deeper"]
)
def test_a_missing_module_is_named_in_the_error(use: str):
    """The error also names the package."""
    with pytest.raises(ValueError, match=rf"^there is no module .*{use}$"):
        load(use, "policies", Policy)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("X = 1\n", 0), (QUOTA + QUOTA.replace("Quota", "Other"), 2)])
def test_a_module_must_define_one_class(package: Path, text: str, count: int):
    """None or two would be ambiguous."""
    (package / f"count{count}_{len(text)}.py").write_text(text)

    with pytest.raises(ValueError, match=rf"defines {count} classes of Policy; it must define one$"):
        load(f"acme_test.count{count}_{len(text)}", "policies", Policy)


def test_a_class_of_another_kind_does_not_count():
    """A policy is not a backend."""
    with pytest.raises(ValueError, match="defines 0 classes of Backend"):
        load("policies.metadata_limits", "backends", Backend)


@pytest.mark.parametrize("missing", ["no_such_module", "acme", "acme_test_2", "acme_test.other"])
def test_a_failed_import_inside_a_module_is_not_a_missing_module(package: Path, missing: str):
    """The error names the import that failed, even if its name resembles the module's."""
    (package / "broken.py").write_text(f"import {missing}\n")

    with pytest.raises(ModuleNotFoundError) as caught:
        load("acme_test.broken", "policies", Policy)

    assert caught.value.name == missing


def test_an_error_while_a_module_is_loaded_is_raised_unchanged(package: Path):
    """It is more precise than an error of the gateway could be."""
    (package / "crash.py").write_text("1 / 0\n")

    with pytest.raises(ZeroDivisionError):
        load("acme_test.crash", "policies", Policy)


def test_a_class_with_missing_methods_is_refused(package: Path):
    """The error comes when the config is read, not during a call, and names the methods."""
    (package / "half.py").write_text(
        "from proxy.stores import Store\nclass Half(Store):\n    async def get(self, key): ...\n"
    )

    missing = "add, append, claim, delete, give, hold, put, release, rows, scan, tail, take"
    with pytest.raises(ValueError, match=f"does not implement {missing}, which every Store must have"):
        load("acme_test.half", "proxy.stores", Store)
