"""What every policy, backend and store owes its readers, and the budgets of files and functions."""

import ast
import inspect
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from backends import Backend
from policies import Policy
from proxy import config, tables
from proxy.telemetry.audit import AuditTable
from proxy.config.plugins import load
from proxy.telemetry.recorder import RecordTable
from proxy.stores import Store

ROOT = Path(__file__).parent.parent
ROOMS = {
    "policies": (Policy, ("Request:", "Response:", "Source:")),
    "backends": (Backend, ("Answers:", "Fails:", "Source:")),
    "proxy.stores": (Store, ("Keeps:", "Fails:", "Source:")),
}
LONGEST_FILE, LONGEST_FUNCTION = 300, 40
EXAMPLE = (ROOT / "config.example.toml").read_text()


def members(room: str) -> list[str]:
    """The names that `use` may have for a room of the house."""
    folder = ROOT / room.replace(".", "/")
    files = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
    rooms = [path.parent.name for path in folder.glob("*/__init__.py") if path.parent.name != "training"]
    return sorted(files + rooms)


MEMBERS = [(room, name) for room in ROOMS for name in members(room)]


@pytest.mark.parametrize(("room", "name"), MEMBERS)
def test_it_says_what_it_does_under_the_headings_of_its_room(room: str, name: str):
    """`headgate explain` prints this docstring; its headings are what a reader looks for."""
    text = inspect.getdoc(import_module(f"{room}.{name}")) or ""

    assert [heading for heading in ROOMS[room][1] if heading not in text] == []


@pytest.mark.parametrize(("room", "name"), MEMBERS)
def test_it_has_a_test_file_of_its_own(room: str, name: str):
    """The test of a module lies at the module's own path."""
    place = ROOT / "tests" / room.removeprefix("proxy.").replace(".", "/")

    assert (place / f"test_{name}.py").exists() or list((place / name).glob("test_*.py"))


@pytest.mark.parametrize(("room", "name"), MEMBERS)
def test_every_key_of_it_is_explained_and_shown_in_the_example(room: str, name: str):
    """config.example.toml is the reference manual: no key is left out of it, or without a sentence in its class."""
    table = load(name, room, ROOMS[room][0])
    own = table.model_fields

    assert [key for key, field in own.items() if not field.description] == []
    assert [key for key in own if f"{key} = " not in EXAMPLE] == []


@pytest.mark.parametrize("name", members("policies"))
def test_what_a_policy_says_of_its_keys_is_about_keys_that_it_has(name: str):
    """`headgate policy diff` names them."""
    policy = load(name, "policies", Policy)

    assert policy.judges_text - set(policy.model_fields) == set()


@pytest.mark.parametrize(("room", "name"), MEMBERS)
def test_the_readme_has_a_row_for_it(room: str, name: str):
    """Who looks for a policy, backend or store finds it in the README's tables."""
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "table",
    [
        tables.Server,
        tables.CallerTable,
        tables.RouteTable,
        tables.CacheTable,
        tables.StateTable,
        tables.Selectors,
        AuditTable,
        RecordTable,
    ],
)
def test_every_key_of_the_config_is_in_the_example(table):
    """The tables that are not plugged in are shown whole, too."""
    assert [key for key in table.model_fields if f"{key} = " not in EXAMPLE] == []


@pytest.mark.parametrize("table", ["state", "cache"])
@pytest.mark.parametrize("store", members("proxy.stores"))
def test_each_table_with_a_store_shows_its_keys(table: str, store: str):
    """Those of the store that is not used there, too."""
    shown = EXAMPLE.partition(f"\n[{table}]\n")[2].partition("\n\n")[0]

    assert [key for key in load(store, "proxy.stores", Store).model_fields if f"{key} = " not in shown] == []


def test_the_example_is_a_config_that_loads(monkeypatch: pytest.MonkeyPatch):
    """The reference manual is read by the very code it explains."""
    for name in ("SEARCH_APP_KEY", "OPENAI_API_KEY", "SAFETY_KEY", "REDIS_PASSWORD"):
        monkeypatch.setenv(name, "secret-enough")
    read = config.read(ROOT / "config.example.toml")

    assert [rule.name for rule in read.rules] == [table["use"] for table in tomllib.loads(EXAMPLE)["policy"]]


SOURCES = [path for room in ("proxy", "policies", "backends") for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_keep_their_budgets(path: Path):
    """A room that outgrows its budget is two rooms."""
    text = path.read_text()
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]

    assert long == []
    assert text.count("\n") <= LONGEST_FILE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_begins_with_a_sentence_that_says_what_it_is(path: Path):
    """The first line of a file is read before any other. (An empty file is empty on purpose.)"""
    text = path.read_text()

    assert text == "" or ast.get_docstring(ast.parse(text))


def test_no_source_runs_code_that_somebody_typed():
    """No eval, no exec, no pickle: what is configured or asked is never executed."""
    calls = [
        (path.name, node.func.id)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("eval", "exec", "compile")
    ]

    assert calls == []
    assert [path.name for path in SOURCES if "import pickle" in path.read_text()] == []
