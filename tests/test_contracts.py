"""Checks the documentation of every policy, backend and store, the limits of files and functions, and the documents."""

import ast
import inspect
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from backends import Backend
from policies import Policy
from proxy.config import process_tables, schema
from proxy.config.admin_table import AdminKeyTable, AdminTable, OidcTable
from proxy.config.build import ConfigFile, read
from proxy.config.field_docs import field_docs
from proxy.config.plugins import load
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable
from tests import longest
from tests.sources import ROOT, SOURCES, parse, walk

# The base class of a package's plug-ins, and the headings of their docstrings.
PACKAGES = {
    "policies": (Policy, ("Request:", "Response:", "Source:")),
    "backends": (Backend, ("Answers:", "Fails:", "Source:")),
    "proxy.stores": (Store, ("Keeps:", "Fails:", "Source:")),
}
NOT_PLUGINS = {"support", "training"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 40
MAX_README_WORDS = 1000  # the bars of its tables count
EXAMPLE = (ROOT / "config.example.toml").read_text()
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "proxy" / "README.md").read_text()
# Classes that may share a name, each with the reason.
SHARED_NAMES = {"Template": "the file that a new plug-in is copied from has one class, which the copy renames"}


def plugins(package: str) -> list[str]:
    """Return the names that `use` may have for a package."""
    folder = ROOT / package.replace(".", "/")
    files = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
    folders = [path.parent.name for path in folder.glob("*/__init__.py") if path.parent.name not in NOT_PLUGINS]
    return sorted(files + folders)


PLUGINS = [(package, name) for package in PACKAGES for name in plugins(package)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("package", "name"), PLUGINS)
def test_the_docstring_of_a_plugin_has_the_headings_of_its_package(package: str, name: str):
    """`headgate explain` prints this docstring."""
    text = inspect.getdoc(import_module(f"{package}.{name}")) or ""

    assert [heading for heading in PACKAGES[package][1] if heading not in text] == []


@pytest.mark.parametrize(("package", "name"), PLUGINS)
def test_a_plugin_has_its_own_test_file(package: str, name: str):
    """The test file has the path of the module."""
    folder = ROOT / "tests" / package.removeprefix("proxy.")

    assert (folder / f"test_{name}.py").exists() or list((folder / name).glob("test_*.py"))


@pytest.mark.parametrize(("package", "name"), PLUGINS)
def test_every_key_of_a_plugin_is_explained_and_in_the_example(package: str, name: str):
    """config.example.toml is the reference manual; a key's docstring is printed by `headgate explain`."""
    plugin = load(name, package, PACKAGES[package][0])
    keys = plugin.model_fields

    assert keys.keys() - field_docs(plugin).keys() == set()
    assert [key for key in keys if f"{key} = " not in EXAMPLE] == []


@pytest.mark.parametrize("name", plugins("policies"))
def test_the_text_keys_of_a_policy_are_among_its_keys(name: str):
    """`headgate policy diff` prints them."""
    policy = load(name, "policies", Policy)

    assert policy.text_keys - set(policy.model_fields) == set()


@pytest.mark.parametrize(("package", "name"), PLUGINS)
def test_the_readme_has_a_row_for_every_plugin(package: str, name: str):
    """Its tables list all policies, backends and stores."""
    assert f"| `{name}` |" in README


def test_the_readme_has_no_other_rows():
    """A policy, backend or store that was renamed or removed has no row."""
    tables = README.partition("## What is built in")[2].partition("\n## ")[0]

    assert sorted(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE)) == sorted(name for _, name in PLUGINS)


@pytest.mark.parametrize(
    "table",
    [
        process_tables.ServerTable,
        AdminKeyTable,
        OidcTable,
        AdminTable,
        schema.CallerTable,
        schema.RouteTable,
        schema.RelayTable,
        schema.CacheTable,
        schema.StateTable,
        schema.SelectorTable,
        AuditTable,
        RecordTable,
    ],
)
def test_every_key_of_the_config_is_in_the_example(table):
    """This includes the tables that are not plug-ins."""
    assert [key for key in table.model_fields if f"{key} = " not in EXAMPLE] == []


def test_every_table_of_the_config_is_in_the_example():
    """It may be a table or an array of tables."""
    assert set(tomllib.loads(EXAMPLE)) == set(ConfigFile.model_fields)


@pytest.mark.parametrize("table", ["state", "cache"])
@pytest.mark.parametrize("store", plugins("proxy.stores"))
def test_the_keys_of_every_store_are_in_the_example_of_each_table(table: str, store: str):
    """Keys of stores that the example does not use are in comments."""
    section = EXAMPLE.partition(f"\n[{table}]\n")[2].partition("\n\n")[0]

    assert [key for key in load(store, "proxy.stores", Store).model_fields if f"{key} = " not in section] == []


def test_the_example_is_a_config_that_loads(monkeypatch: pytest.MonkeyPatch):
    """The reference manual therefore stays valid."""
    for name in (
        "ADMIN_KEY",
        "CONSOLE_SECRET",
        "SEARCH_APP_KEY",
        "OPENAI_API_KEY",
        "OPENAI_BATCH_API_KEY",
        "SAFETY_KEY",
        "REDIS_PASSWORD",
        "REDIS_USER",
        "STATE_SECRET",
        "CACHE_SECRET",
    ):
        monkeypatch.setenv(name, "secret-enough-for-everything-here")
    config = read(ROOT / "config.example.toml")

    assert [rule.name for rule in config.rules] == [table["use"] for table in tomllib.loads(EXAMPLE)["policy"]]


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Yield every node of every source."""
    return ((path, node) for path in SOURCES for node in walk(parse(path)))


def test_files_are_within_their_limit():
    """A file beyond its limit should be two files."""
    assert [relative(path) for path in SOURCES if path.read_text().count("\n") > MAX_FILE_LINES] == []


def test_functions_are_within_their_limit():
    """A function beyond its limit should be two functions."""
    assert [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ] == []


def test_every_file_starts_with_a_docstring():
    """Only an empty file may lack it."""
    assert [relative(path) for path in SOURCES if path.read_text() and not ast.get_docstring(parse(path))] == []


def test_no_two_classes_share_a_name():
    """Names are unique in the whole project, private classes included."""
    files = defaultdict(set)
    for path, node in nodes():
        if isinstance(node, ast.ClassDef) and node.name not in SHARED_NAMES:
            files[node.name].add(f"{relative(path)}:{node.lineno}")

    assert {name: sorted(places) for name, places in files.items() if len(places) > 1} == {}


def test_no_source_runs_code_from_data():
    """There is no eval, exec, compile or pickle, so configured or received data is never executed."""
    calls = [
        (path.name, node.func.id)
        for path, node in nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("eval", "exec", "compile")
    ]

    assert calls == []
    assert [path.name for path in SOURCES if "import pickle" in path.read_text()] == []


def test_no_property_has_a_time_limit():
    """By default, for those that set nothing: tests/conftest.py."""
    assert settings.default is not None
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_the_readme_is_short():
    """It is for users; details are in the documents beside the code."""
    assert len(README.split()) <= MAX_README_WORDS


def layers_in_architecture() -> list[set[str]]:
    """Return the layers of proxy/README.md from the top: modules below proxy/, or other packages."""
    block = ARCHITECTURE.partition("## The layers")[2].split("```")[1]
    layers = []
    for line in block.strip().splitlines():
        layer = set()
        for name, parts in re.findall(r"([\w.]+)(?: \(([\w, ]+)\))?", line):
            layer |= {f"{name}.{part}" for part in parts.split(", ")} if parts else {name}
        layers.append(layer)
    return layers


def layers_of_linter() -> list[set[str]]:
    """Return the layers that import-linter checks, in the same form."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if "proxy.wire" in contract.get("layers", ())]
    return [{module.removeprefix("proxy.") for module in re.split(r" [:|] ", layer)} for layer in layers]


def test_the_documented_layers_are_those_that_are_checked():
    """import-linter reads them from pyproject.toml."""
    assert layers_in_architecture() == layers_of_linter()


def test_every_module_of_the_gateway_is_in_a_layer():
    """The module or its package is in it; a module in no layer could import anything."""
    checked = set().union(*layers_of_linter())
    modules = [path.relative_to(ROOT / "proxy").with_suffix("") for path in (ROOT / "proxy").rglob("*.py")]
    places = [
        {".".join(module.parts[:length]) for length in range(1, len(module.parts) + 1)}
        for module in modules
        if module.name != "__init__"
    ]

    assert [max(place) for place in places if not place & checked] == []


@pytest.mark.parametrize(
    ("contract", "key"),
    [("Policies never import policies", "modules"), ("The gateway imports no single policy", "forbidden_modules")],
)
def test_every_policy_is_in_the_import_contracts(contract: str, key: str):
    """import-linter does not check a policy that is missing there."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contracts = {each["name"]: each for each in listed}

    assert sorted(contracts[contract][key]) == [f"policies.{name}" for name in plugins("policies")]


def test_the_files_that_run_first_exist():
    """A file that was renamed would run at the end, alone."""
    assert [file for file in longest.RANKS if not (ROOT / file).exists()] == []
