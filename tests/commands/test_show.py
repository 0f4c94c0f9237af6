"""`headgate check` and `headgate explain`, as a person types them."""

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
from tests.test_contracts import members

SECRET = "a-secret-that-nobody-may-see"
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
"""
ROOMS = {"policies": Policy, "backends": Backend, "proxy.stores": Store}
MEMBERS = [(room, name) for room in ROOMS for name in members(room)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file with something of everything."""
    monkeypatch.setenv("APP_KEY", SECRET)
    path = tmp_path / "headgate.toml"
    path.write_text(CONFIG)
    return path


def test_check_prints_every_hop_in_the_order_of_a_call(config: Path, capsys: pytest.CaptureFixture[str]):
    """Who may ask, what is done to it, where it goes, and whether the answer is kept."""
    code = main(["check", "--config", str(config)])
    told = capsys.readouterr()

    assert (code, told.err) == (0, "")
    assert told.out.splitlines() == [
        "listen    0.0.0.0:9000",
        "identify  search-app (team search), batch (team batch)",
        "policy    metadata_limits [enforce]",
        "policy    safety_identifier [report] source='caller' keys=(SecretStr('**********'),)",
        "policy    max_tool_calls [enforce, callers batch search-*, models gpt-*, 10.0% of callers] max=8 default=4",
        "policy    max_tool_calls [off, callers none] max=2",
        "state     redis",
        "route     canned -> canned (replay)",
        "route     gpt-* -> openai (upstream)",
        "cache     memory, ttl 90.5 s",
    ]


def test_check_shows_no_secret(config: Path, capsys: pytest.CaptureFixture[str]):
    """Neither a caller's key nor a policy's nor a backend's."""
    main(["check", "--config", str(config)])
    told = capsys.readouterr()

    assert SECRET not in told.out + told.err


def test_check_of_a_gate_for_everybody_says_so(tmp_path: Path, capsys):
    """And that it then listens to this machine only."""
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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max = 8", "max = 0", "policy[2].max: Input should be greater than 0"),
        ("rollout = 0.1", "rollout = 2", "policy[2].rollout: Input should be less than or equal to 1"),
        ('mode = "off"', 'mode = "loud"', "policy[3].mode: Input should be 'enforce', 'report' or 'off'"),
        ('backend = "openai"', 'backend = "opanai"', "route[1].backend: there is no backend called 'opanai'"),
        ("ttl_s", "tll_s", "cache.tll_s: unknown key"),
        ('key = "env:APP_KEY"', 'key = "env:NO_KEY"', "caller[0].key: the environment variable NO_KEY is not set"),
        ("[[route]]", "[[route", ": not TOML: "),
    ],
)
def test_check_names_what_is_wrong(config: Path, capsys, old: str, new: str, said: str):
    """Exit 2 and the path of the key."""
    config.write_text(CONFIG.replace(old, new, 1))
    code = main(["check", "--config", str(config)])
    told = capsys.readouterr()

    assert (code, told.out) == (2, "")
    assert said in told.err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('path = "nowhere"', "backend 'own' cannot start: There is no model folder nowhere.\n"),
        ('path = "."', "backend 'own' cannot start: The model folder . has no model.bin.\n"),
        ('path = "."\nkeeps_state = true', "a local model keeps neither responses nor policies"),
    ],
)
def test_check_names_a_backend_that_cannot_start(config: Path, capsys, keys: str, said: str):
    """As far as that is seen without loading a model."""
    config.write_text(CONFIG + f'[[backend]]\nuse = "local"\nname = "own"\n{keys}\n')
    code = main(["check", "--config", str(config)])
    told = capsys.readouterr()

    assert (code, told.out) == (2, "")
    assert said in told.err


def test_check_of_a_missing_file_is_exit_2(tmp_path: Path, capsys):
    """The file is named."""
    code = main(["check", "--config", str(tmp_path / "none.toml")])

    assert (code, capsys.readouterr().err) == (2, f"{tmp_path / 'none.toml'}: No such file or directory\n")


@pytest.mark.parametrize(("room", "name"), MEMBERS)
def test_explain_prints_what_the_file_says_of_itself_and_every_key(room: str, name: str, capsys):
    """For each policy, backend and store there is."""
    code = main(["explain", name])
    told = capsys.readouterr()
    fields = load(name, room, ROOMS[room]).model_fields

    assert (code, told.err) == (0, "")
    assert told.out.startswith(f"{name}: {inspect.getdoc(import_module(f'{room}.{name}'))}\n\nKeys:\n")
    assert [key for key in fields if f"\n  {key} (" not in told.out] == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("max_tool_calls", "  max (required)\n      The most calls that one response may make"),
        ("max_tool_calls", "  on_exceed (default 'clamp')\n      What happens"),
        ("redis", "  timeout_ms (default 50)\n      How long any one command may take"),
        ("upstream", "  base_url (required)\n      Where it is, the version included"),
        ("local", "  keeps_state (default False)\n      Always false"),
    ],
)
def test_explain_says_of_a_key_what_it_is_and_what_stands_there_by_default(name: str, shown: str, capsys):
    """Or that it must be given."""
    main(["explain", name])

    assert shown in capsys.readouterr().out


def test_explain_reads_a_module_of_your_own(capsys):
    """The name that stands behind `use` is all it needs."""
    assert main(["explain", "tests.faulty"]) == 0
    assert capsys.readouterr().out.startswith("tests.faulty: A backend with a mistake in it")


@pytest.mark.parametrize("name", ["", "nothing", "_template", "os.path", "../policies", "max-tool-calls", "a..b"])
def test_explain_of_what_is_not_there_is_exit_2(name: str, capsys):
    """With a sentence, and no traceback."""
    code = main(["explain", name])
    told = capsys.readouterr()

    assert (code, told.out) == (2, "")
    assert told.err == f"There is no policy, backend or store called '{name}'.\n"
