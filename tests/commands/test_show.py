"""`headgate check` and `headgate explain`."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from backends import Backend
from policies import Policy
from proxy.__main__ import main
from proxy.config.plugins import load
from proxy.stores import Store
from tests.conftest import DATA

SECRET = "a-secret-that-must-not-be-printed"
CONFIG = f"""
[server]
host = "0.0.0.0"
port = 9000
[[caller]]
name = "search-app"
team = "search"
key = "env:APP_KEY"
[[caller]]
name = "batch"
key_sha256 = "{"9f" * 32}"
[[policy]]
use = "metadata_limits"
[[policy]]
use = "safety_identifier"
mode = "report"
source = "caller"
keys = ["env:APP_KEY"]
[[policy]]
use = "max_tool_calls"
callers = ["batch", "search-*"]
models = ["gpt-*"]
rollout = 0.1
max = 8
default = 4
[[policy]]
use = "max_tool_calls"
mode = "off"
callers = []
max = 2
[state]
use = "redis"
unknown_ids = "deny"
password = "env:APP_KEY"
[cache]
use = "memory"
ttl_s = 90.5
[[backend]]
use = "replay"
name = "canned"
path = "{DATA / "canonical.sse"}"
[[backend]]
use = "upstream"
name = "openai"
base_url = "https://api.openai.com/v1"
api_key = "env:APP_KEY"
[[route]]
model = "canned"
backend = "canned"
[[route]]
model = "gpt-*"
backend = "openai"
default = true
"""
ROOT = Path(__file__).parent.parent.parent
PACKAGES = {"policies": Policy, "backends": Backend, "proxy.stores": Store}
NOT_PLUGINS = {"support", "training", "demo"}


def plugins(package: str) -> list[str]:
    """Return the names that `use` may have for the modules of a package."""
    folder = ROOT / package.replace(".", "/")
    files = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
    folders = [path.parent.name for path in folder.glob("*/__init__.py")]
    return sorted({*files, *folders} - NOT_PLUGINS)


PLUGINS = [(package, name) for package in PACKAGES for name in plugins(package)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file that uses every kind of table."""
    monkeypatch.setenv("APP_KEY", SECRET)
    path = tmp_path / "headgate.toml"
    path.write_text(CONFIG)
    return path


def test_check_prints_the_path_of_a_call_in_order(config: Path, capsys: pytest.CaptureFixture[str]):
    """The steps are callers, policies, state, routes and cache, with the settings that differ from their defaults."""
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert printed.out.splitlines() == [
        "listen    0.0.0.0:9000",
        "identify  search-app (team search), batch (team batch)",
        "policy    metadata_limits [enforce]",
        'policy    safety_identifier [report] source="caller" keys=[***]',
        "policy    max_tool_calls [enforce, callers batch search-*, models gpt-*, 10.0% of callers] max=8 default=4",
        "policy    max_tool_calls [off, callers none] max=2",
        "state     redis, unknown ids are denied",
        "route     canned -> canned (replay)",
        "route     gpt-* -> openai (upstream) [default]",
        "cache     memory, ttl 90.5 s",
    ]


def test_check_prints_no_secret(config: Path, capsys: pytest.CaptureFixture[str]):
    """It prints no key of a caller, a policy, a backend or a store."""
    main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert SECRET not in printed.out + printed.err


def test_check_needs_no_secrets(config: Path, capsys, monkeypatch):
    """Nor files of the gateway's machine: its faults are found where none of them may be."""
    monkeypatch.delenv("APP_KEY")
    config.write_text(CONFIG + '[audit]\npath = "/none/audit.jsonl"\n')
    outcomes = [main(["check", "--config", str(config), *more]) for more in ([], ["--no-secrets"])]

    assert outcomes == [2, 0]
    assert "audit     /none/audit.jsonl\n" in capsys.readouterr().out
    config.write_text(CONFIG.replace("max = 8", "max = 0"))
    assert main(["check", "--config", str(config), "--no-secrets"]) == 2
    assert "policy[2].max: Input should be greater than 0" in capsys.readouterr().err


def test_check_reports_that_a_gateway_without_callers_is_open(tmp_path: Path, capsys):
    """Such a gateway listens on loopback only."""
    path = tmp_path / "headgate.toml"
    path.write_text(
        CONFIG[CONFIG.index("[[backend]]") : CONFIG.index('[[backend]]\nuse = "upstream"')]
        + """
[[route]]
model = "*"
backend = "canned"
"""
    )

    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "listen    127.0.0.1:8080",
        "identify  anybody, on loopback only",
        "state     memory",
        "route     * -> canned (replay)",
        "cache     none",
    ]


@pytest.mark.parametrize(("host", "is_closed"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_check_says_where_there_is_no_sign_in(
    config: Path, capsys: pytest.CaptureFixture[str], host: str, is_closed: bool
):
    """Elsewhere than on loopback the console needs a key, or an issuer."""
    config.write_text(f'{CONFIG}\n[admin]\nhost = "{host}"\n')
    assert main(["check", "--config", str(config), "--no-secrets"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("admin ")]

    assert line.startswith(f"admin     {host}:9464")
    assert ("no [[admin.key]]" in line) == is_closed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max = 8", "max = 0", "policy[2].max: Input should be greater than 0"),
        ("rollout = 0.1", "rollout = 2", "policy[2].rollout: Input should be less than or equal to 1"),
        ('mode = "off"', 'mode = "loud"', "policy[3].mode: Input should be 'enforce', 'report' or 'off'"),
        ('backend = "openai"', 'backend = "opanai"', "route[1].backend: there is no backend called 'opanai'"),
        ("ttl_s", "tll_s", "cache.tll_s: unknown key"),
        (
            'key = "env:APP_KEY"',
            'key = "env:NO_KEY"',
            "caller[0].key: the environment variable NO_KEY is not set",
        ),
        ("[[route]]", "[[route", ": not TOML: "),
    ],
)
def test_check_names_the_invalid_key(config: Path, capsys, old: str, new: str, message: str):
    """It exits with 2 and prints the path of the key."""
    config.write_text(CONFIG.replace(old, new, 1))
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    assert message in printed.err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('path = "nowhere"', ": backend[2]: 'own' cannot start: There is no model folder nowhere.\n"),
        ('path = "."', "backend[2]: 'own' cannot start: The model folder . has no model.bin.\n"),
        ('path = "."\nkeeps_state = true', "a local model keeps neither responses nor policies"),
    ],
)
def test_check_names_a_backend_that_cannot_start(config: Path, capsys, keys: str, message: str):
    """It finds every fault that does not require loading a model."""
    config.write_text(CONFIG + f'[[backend]]\nuse = "local"\nname = "own"\n{keys}\n')
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    assert message in printed.err


def test_check_of_a_missing_file_exits_with_2(tmp_path: Path, capsys):
    """The message names the file."""
    code = main(["check", "--config", str(tmp_path / "none.toml")])

    assert (code, capsys.readouterr().err) == (2, f"{tmp_path / 'none.toml'}: No such file or directory\n")


@pytest.mark.parametrize(("package", "name"), PLUGINS)
def test_explain_prints_the_docstring_of_a_module_and_every_key(package: str, name: str, capsys):
    """This holds for every policy, backend and store."""
    code = main(["explain", name])
    printed = capsys.readouterr()
    fields = load(name, package, PACKAGES[package]).model_fields

    assert (code, printed.err) == (0, "")
    assert printed.out.startswith(f"{name}: {inspect.getdoc(import_module(f'{package}.{name}'))}\n\nKeys:\n")
    assert [key for key in fields if f"\n  {key} (" not in printed.out] == []


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("max_tool_calls", "  max (required)\n      The most calls that one response may make"),
        ("max_tool_calls", '  on_exceed (default "clamp")\n      What happens'),
        ("metadata_limits", "  max_pairs (default 16)\n      How many pairs a call may carry."),
        ("redis", "  timeout_ms (default 50)\n      How long any one command may take"),
        ("upstream", "  base_url (required)\n      The address of the API, version included"),
        ("upstream", "  headers (default {})\n"),
        ("upstream", "  proxy (optional)\n"),
        ("local", "  keeps_state (default false)\n      Always false"),
    ],
)
def test_explain_describes_a_key_with_its_default(name: str, printed: str, capsys):
    """A key without a default is marked as required."""
    main(["explain", name])

    assert printed in capsys.readouterr().out


def test_explain_describes_a_module_outside_the_project(capsys):
    """The module is named by the value of `use`."""
    assert main(["explain", "tests.crashing_backend"]) == 0
    assert capsys.readouterr().out.startswith("tests.crashing_backend: A backend that crashes")


@pytest.mark.parametrize(
    "name", ["", "nothing", "_template", "os.path", "../policies", "../x", "max-tool-calls", "a..b"]
)
def test_explain_of_an_unknown_name_exits_with_2(name: str, capsys):
    """It prints a sentence without a traceback."""
    code = main(["explain", name])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    first, second, *_ = printed.err.splitlines()
    assert first.partition(";")[0] == f"There is no policy, backend or store called '{name}'"
    assert ("; did you mean max_tool_calls?" in first) == (name == "max-tool-calls")
    assert second == "There are:"
    assert [set(line.split(": ")[1].split(", ")) for line in printed.err.splitlines()[2:5]] == [
        set(plugins(package)) for package in PACKAGES
    ]


RELAYING = """
[[policy]]
use = "models"
deny = ["o1-*"]
[[policy]]
use = "metadata_limits"
[[policy]]
use = "tools"
mode = "off"
[[backend]]
use = "upstream"
name = "openai"
base_url = "https://api.openai.com/v1"
[[route]]
model = "*"
backend = "openai"
[[relay]]
path = "/v1/embeddings"
backend = "openai"
[[relay]]
path = "/v1/batches/*"
backend = "openai"
"""


def test_check_names_the_policies_that_do_not_apply_to_a_relay(tmp_path: Path, capsys):
    """A relay must not bypass a policy without a warning."""
    path = tmp_path / "my.toml"
    path.write_text(RELAYING)
    code = main(["check", "--config", str(path)])
    printed = capsys.readouterr()

    assert code == 0
    assert "relay     /v1/embeddings -> openai (upstream)\n" in printed.out
    assert printed.err.splitlines() == [
        f"warning: {path}:18:1: relay[0].path: /v1/embeddings: these policies do not apply to it: metadata_limits",
        f"warning: {path}:18:1: relay[0].path: /v1/embeddings: these policies read JSON bodies and fields of forms, no files: models",
        f"warning: {path}:21:1: relay[1].path: /v1/batches/*: these policies do not apply to it: metadata_limits",
        f"warning: {path}:21:1: relay[1].path: /v1/batches/*: these policies read JSON bodies and fields of forms, no files: models",
        f"warning: {path}:21:1: relay[1].path: /v1/batches/*: the calls in a batch's file pass without any policy",
    ]


def test_check_warns_of_ids_in_batches_of_several_teams(tmp_path: Path, capsys, monkeypatch):
    """A call in a batch's file may continue what another team owns."""
    for name in ("anna", "ben"):
        monkeypatch.setenv(f"KEY_{name}", f"sk-{name}-1")
    callers = "".join(f'[[caller]]\nname = "{name}"\nkey = "env:KEY_{name}"\n' for name in ("anna", "ben"))
    path = tmp_path / "my.toml"
    path.write_text(callers + RELAYING[RELAYING.index("[[backend]]") :])

    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {path}:18:1: relay[1].path: /v1/batches/*: the ids in a batch's file are not checked for their owners"
    ]


def test_check_has_nothing_to_warn_of_without_policies(tmp_path: Path, capsys):
    (tmp_path / "my.toml").write_text(RELAYING[RELAYING.index("[[backend]]") :])

    assert main(["check", "--config", str(tmp_path / "my.toml")]) == 0
    assert capsys.readouterr().err == ""
