"""What people type, and what they are told when it is wrong."""

import hashlib
import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest

from backends.replay import Replay
from backends.upstream import Upstream
from policies.metadata_limits import MetadataLimits
from proxy.config.build import DEMO, ConfigError, build, default_config, read
from proxy.context import Caller
from proxy.stores.memory import MemoryStore

KEY = "sk-nobody-may-see-this"
MINIMAL = """
[[backend]]
name = "canned"
use = "replay"
path = "canned.sse"

[[route]]
model = "*"
backend = "canned"
"""
QUOTA = """
from policies import Policy
from proxy.config.table import Table

class Limit(Table):
    most: int = 1

class Quota(Policy):
    one: Limit = Limit()
    listed: list[Limit] | None = None
    named: dict[str, Limit] = {}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable with a key in it, and one that is not there."""
    monkeypatch.setenv("GATE_KEY", KEY)
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def typed(more: str = "", minimal: str = MINIMAL) -> dict[str, Any]:
    """The tables of a config that would be good without `more`."""
    return tomllib.loads(minimal + more)


def fault(tables: dict[str, Any]) -> str:
    """What is said of a config that is refused."""
    with pytest.raises(ConfigError) as caught:
        build(tables)
    return str(caught.value)


def test_the_smallest_config_has_every_default():
    """A backend and a route to it."""
    config = build(typed())

    assert (config.server.host, config.server.port, config.server.drain_s) == ("127.0.0.1", 8080, 30)
    assert (config.callers, config.rules, config.cache, config.cache_store, config.audit) == ([], [], None, None, None)
    assert isinstance(config.backends["canned"], Replay)
    assert [(route.model, [target.name for target in route.targets]) for route in config.routes] == [("*", ["canned"])]
    assert isinstance(config.state, MemoryStore)


def test_a_whole_config():
    """Each table becomes what it names, in the order of the file."""
    config = build(typed(f"""
[server]
host = "0.0.0.0"
port = 0

[[caller]]
name = "anna"
key = "env:GATE_KEY"
[[caller]]
name = "ben"
team = "ads"
key_sha256 = "{hashlib.sha256(b"x").hexdigest().upper()}"

[[policy]]
use = "max_tool_calls"
max = 3
[[policy]]
use = "policies.metadata_limits"
mode = "report"
rollout = 0.5
callers = ["an*"]
models = ["m"]
max_pairs = 2

[cache]
use = "memory"
ttl_s = 5
store_max_entries = 7

[[backend]]
name = "cloud"
use = "upstream"
base_url = "https://api.example/v1"
api_key = "env:GATE_KEY"
keeps_state = true
"""))  # fmt: skip
    limits = config.rules[1].policy

    assert [(caller.name, caller.team) for caller in config.callers] == [("anna", "anna"), ("ben", "ads")]
    assert [(rule.name, rule.mode, rule.rollout) for rule in config.rules] == [
        ("max_tool_calls", "enforce", 1.0),
        ("metadata_limits", "report", 0.5),
    ]
    assert isinstance(limits, MetadataLimits)
    assert limits.max_pairs == 2
    assert config.rules[1].applies_to(Caller("anna", "t"), "m")
    assert not config.rules[1].applies_to(Caller("ben", "t"), "m")
    assert not config.rules[1].applies_to(Caller("anna", "t"), "n")
    assert config.cache is not None
    assert isinstance(config.cache_store, MemoryStore)
    assert (config.cache.ttl_s, config.cache_store.store_max_entries) == (5, 7)
    assert isinstance(config.backends["cloud"], Upstream)
    assert config.backends["cloud"].keeps_state is True


# Each broken config with the path of its key, and what is said of it.
BROKEN = {
    # Keys that nobody knows.
    "a table": ("[sever]\nport = 1", "sever: unknown key; did you mean server?"),
    "a key of a table": ("[server]\nprot = 1", "server.prot: unknown key; did you mean port?"),
    "a key of a caller": ('[[caller]]\nname = "a"\nkye = "env:GATE_KEY"', "caller[0].kye: unknown key; did you mean key?"),
    "a key of a policy": ('[[policy]]\nuse = "metadata_limits"\nmax_pair = 3', "policy[0].max_pair: unknown key; did you mean max_pairs?"),
    "a key of every policy": ('[[policy]]\nuse = "metadata_limits"\ncaller = ["a"]', "policy[0].caller: unknown key; did you mean callers?"),
    "a key of a backend": ('[[backend]]\nname = "b"\nuse = "replay"\npath = "x"\npace = 3', "backend[1].pace: unknown key; did you mean pace_ms?"),
    "a key of the cache": ('[cache]\nuse = "memory"\nstore_max_byte = 3', "cache.store_max_byte: unknown key; did you mean store_max_bytes?"),
    "a key of the audit": ('[audit]\npath = "x"\nallow = true', "audit.allow: unknown key; did you mean allowed?"),
    "a key of a route": ('[[route]]\nmodel = "m"\nbackends = "canned"', "route[1].backends: unknown key; did you mean backend?"),
    "a key like no other": ("[server]\nxyzzy = 1", "server.xyzzy: unknown key"),
    # Values of the wrong type or size.
    "a port that is text": ('[server]\nport = "http"', "server.port: Input should be a valid integer"),
    "a port too high": ("[server]\nport = 65536", "server.port: Input should be less than or equal to 65535"),
    "a time of nothing": ("[server]\nhead_timeout_s = 0", "server.head_timeout_s: Input should be greater than 0"),
    "a time without end": ("[server]\nbody_timeout_s = inf", "server.body_timeout_s: Input should be a finite number"),
    "a table that is a value": ("server = 3", "server: Input should be a valid dictionary"),
    "tables that are one": ('[policy]\nuse = "metadata_limits"', "policy: Input should be a valid list"),
    "a mode that nobody knows": ('[[policy]]\nuse = "metadata_limits"\nmode = "warn"', "policy[0].mode: Input should be 'enforce', 'report' or 'off'"),
    "a share of more than all": ('[[policy]]\nuse = "metadata_limits"\nrollout = 2', "policy[0].rollout: Input should be less than or equal to 1"),
    "callers that are text": ('[[policy]]\nuse = "metadata_limits"\ncallers = "anna"', "policy[0].callers: Input should be a valid tuple"),
    "a policy against itself": ('[[policy]]\nuse = "max_tool_calls"\nmax = 1\ndefault = 2', "policy[0]: default is 2; max allows 1"),
    "a pattern that is none": ('[[policy]]\nuse = "safety_identifier"\npattern = "("', "policy[0].pattern: not a regular expression"),
    "an address that is none": ('[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "api.example"', "backend[1].base_url: String should match pattern"),
    "a number of more than 64 bits": ('[[policy]]\nuse = "max_tool_calls"\nmax = 100000000000000000000000', "policy[0].max: the integer does not fit in 64 bits"),
    "one more than 64 bits hold": (f"[server]\nmax_body_bytes = {2**63}", "server.max_body_bytes: the integer does not fit in 64 bits"),
    "one less than 64 bits hold": (f"[server]\nport = {-(2**63) - 1}", "server.port: the integer does not fit in 64 bits"),
    "a number that is a text": (f'[[policy]]\nuse = "max_tool_calls"\nmax = "{2**63}"', "policy[0].max: the integer does not fit in 64 bits"),
    "a number in a list": (f'[[policy]]\nuse = "include"\nallow = ["a", {2**64}]', "policy[0].allow[1]: the integer does not fit in 64 bits"),
    "a number of the state": (f"[state]\nstore_max_bytes = {2**63}", "state.store_max_bytes: the integer does not fit in 64 bits"),
    "a number without end": (f"[server]\nmax_body_bytes = 0x{'f' * 9000}", "server.max_body_bytes: the integer does not fit in 64 bits"),
    # What is missing.
    "a policy without use": ("[[policy]]\nmax_pairs = 1", "policy[0].use: missing"),
    "a backend without use": ('[[backend]]\nname = "b"', 'backend[1].use: missing; name the kind of backend, such as use = "upstream"'),
    "a use that is no text": ('[[backend]]\nname = "b"\nuse = 3', 'backend[1].use: missing; name the kind of backend, such as use = "upstream"'),
    "a cache without use": ("[cache]\nttl_s = 1", "cache.use: missing"),
    "a backend without a name": ('[[backend]]\nuse = "replay"\npath = "x"', "backend[1].name: missing"),
    "a caller without a name": ('[[caller]]\nkey = "env:GATE_KEY"', "caller[0].name: missing"),
    "a policy without its key": ('[[policy]]\nuse = "max_tool_calls"', "policy[0].max: missing"),
    "a route to nowhere": ('[[route]]\nmodel = "m"', "route[1].backend: missing"),
    # What is not there.
    "a policy that nobody wrote": ('[[policy]]\nuse = "metadata_limit"', "policy[0].use: there is no module policies.metadata_limit"),
    "a policy of nobody's": ('[[policy]]\nuse = "acme.rules"', "policy[0].use: there is no module acme.rules"),
    "the template": ('[[policy]]\nuse = "_template"', "policy[0].use: '_template' is not the name of a module"),
    "a policy as a path": ('[[policy]]\nuse = "../x"', "policy[0].use: '../x' is not the name of a module"),
    "a backend as a policy": ('[[policy]]\nuse = "backends.replay"', "policy[0].use: backends.replay defines 0 classes of Policy; it must define one"),
    "a store that nobody wrote": ('[cache]\nuse = "disk"', "cache.use: there is no module proxy.stores.disk"),
    "a state that nobody keeps": ('[state]\nuse = "disk"', "state.use: there is no module proxy.stores.disk"),
    "a backend that is not there": ('[[route]]\nmodel = "m"\nbackend = "cannot"', "route[1].backend: there is no backend called 'cannot'; known: canned"),
    "two backends of one name": ('[[backend]]\nname = "canned"\nuse = "replay"\npath = "y"', "backend[1].name: there are two backends called 'canned'"),
    # Keys and who may ask.
    "a variable that is not set": ('[[caller]]\nname = "a"\nkey = "env:NOT_SET"', "caller[0].key: the environment variable that it names is not set"),
    "a file that is not there": ('[[caller]]\nname = "a"\nkey = "file:/none"', "caller[0].key: the file that it names cannot be read: No such file or directory"),
    "a key typed by itself": (f'[[caller]]\nname = "a"\nkey = "{KEY}"', 'caller[0].key: a secret must be "env:NAME" or "file:PATH", not the secret itself'),
    "a key of the upstream by itself": (f'[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "{KEY}"', 'backend[1].api_key: a secret must be "env:NAME" or "file:PATH"'),
    "a caller with two keys": (f'[[caller]]\nname = "a"\nkey = "env:GATE_KEY"\nkey_sha256 = "{"a" * 64}"', "caller[0]: give either key"),
    "a caller without a key": ('[[caller]]\nname = "a"', "caller[0]: give either key"),
    "a digest that is none": (f'[[caller]]\nname = "a"\nkey_sha256 = "{KEY}"', "caller[0].key_sha256: String should match pattern"),
    "open to the world": ('[server]\nhost = "0.0.0.0"', "server.host: 0.0.0.0 is reachable by others, and there is no [[caller]]"),
    "open to a network": ('[server]\nhost = "192.168.0.7"', "server.host: 192.168.0.7 is reachable by others"),
    "open by a name": ('[server]\nhost = "gate.example"', "server.host: gate.example is reachable by others"),
    "open to everything": ('[server]\nhost = ""', "server.host:  is reachable by others"),
    "one file for two": ('[audit]\npath = "x.jsonl"\n[record]\npath = "y/../x.jsonl"', "audit.path and record.path: both are x.jsonl; give each a file of its own"),
    "a secret that is not needed": ('[[policy]]\nuse = "safety_identifier"\nsource = "caller"', 'policy[0]: source = "caller" needs a key: key = "env:NAME"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_names_its_key(name: str):
    """As a path from the top, with what was found and what mends it; and no secret is ever repeated."""
    text, said = BROKEN[name]
    # Values at the top of a file stand before its tables.
    told = fault(tomllib.loads(text + MINIMAL) if not text.startswith("[") else typed("\n" + text))

    assert said in told
    assert KEY not in told


@pytest.mark.parametrize("minimal", ["", MINIMAL.split("[[route]]", maxsplit=1)[0]])
def test_a_config_without_a_route_serves_nobody(minimal: str):
    """It says what is missing."""
    assert (
        fault(typed(minimal=minimal)) == "route: there is no [[route]]; at least one must name a model and its backend"
    )


def test_a_route_of_a_config_without_backends_says_so():
    """Rather than list nothing."""
    assert fault(typed('[[route]]\nmodel = "*"\nbackend = "b"', "")) == (
        "route[0].backend: there is no backend called 'b'; known: there is none"
    )


def test_every_fault_of_a_table_is_told_at_once():
    """One line each, so that nobody mends them one by one."""
    told = fault(typed('[server]\nport = -1\nprot = 3\n[[caller]]\nname = ""\n'))

    assert told.splitlines() == [
        "server.port: Input should be greater than or equal to 0",
        "server.prot: unknown key; did you mean port?",
        "caller[0].name: String should have at least 1 character",
    ]


def test_the_largest_integers_of_toml_are_taken():
    """64 bits, their sign included."""
    assert build(typed(f"[server]\nmax_body_bytes = {2**63 - 1}")).server.max_body_bytes == 2**63 - 1


def test_two_names_of_one_file_are_one_file(tmp_path: Path):
    """The record would break the chain of the audit."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tables = {"audit": {"path": str(tmp_path / "link")}, "record": {"path": str(tmp_path / "real")}}

    assert fault(typed() | tables).startswith("audit.path and record.path: both are ")
    assert build(typed() | tables | {"record": {"path": str(tmp_path / "other")}}).audit is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_gate_without_callers_listens_on_loopback(host: str):
    """Who can reach it is on the machine already."""
    assert build(typed(f'[server]\nhost = "{host}"')).server.host == host


def test_the_tables_inside_a_policy_have_their_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A policy of your own may have tables inside, alone, in a list, or under names that people choose."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_hints").mkdir()
    (tmp_path / "acme_hints" / "quota.py").write_text(QUOTA)
    table = {"use": "acme_hints.quota", "one": {"mots": 1}, "listed": [{}, {"mots": 1}], "named": {"a": {"mots": 1}}}

    assert fault(typed() | {"policy": [table]}).splitlines() == [
        "policy[0].one.mots: unknown key; did you mean most?",
        "policy[0].listed[1].mots: unknown key; did you mean most?",
        "policy[0].named.a.mots: unknown key; did you mean most?",
    ]


def test_secrets_never_show():
    """In the config itself, in what it is printed as, and in any error's whole story."""
    config = build(
        typed(
            '[[caller]]\nname = "a"\nkey = "env:GATE_KEY"\n[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "env:GATE_KEY"\n[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "env:GATE_KEY"\n[cache]\nuse = "redis"\npassword = "env:GATE_KEY"\n'
        )
    )
    shown = f"{config!r} {config} {config.callers} {config.rules} {config.backends} {config.cache_store!r}"

    assert KEY not in shown
    assert config.callers[0].key is not None
    assert config.callers[0].key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "text",
    [
        f'[[caller]]\nname = "a"\nkey = "{KEY}"',
        f'[[caller]]\nname = "a"\nkee = "{KEY}"',
        f'[[caller]]\nname = ["{KEY}"]',
        f'[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "{KEY}"',
        f'[[policy]]\nuse = "safety_identifier"\nkey = "{KEY}"',
        f'[cache]\nuse = "redis"\npassword = "{KEY}"',
        f'[server]\nport = "{KEY}"',
        f'token = "{KEY}"',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(text: str):
    """Not even by the error behind the error, which a traceback would print."""
    with pytest.raises(ConfigError) as caught:
        build(tomllib.loads(text + MINIMAL) if not text.startswith("[") else typed("\n" + text))

    assert KEY not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_written_as_the_name_of_a_secret_is_not_repeated(kind: str):
    """`key = "env:<the key itself>"` is an easy mistake; the error names the table's key only."""
    text = f'[[caller]]\nname = "a"\nkey = "{kind}:{KEY}"'
    with pytest.raises(ConfigError) as caught:
        build(typed("\n" + text))
    whole = "".join(traceback.format_exception(caught.value))

    assert str(caught.value).startswith("caller[0].key: the ")
    assert KEY not in whole


AMBIGUOUS = {
    "a name that is a team": [("search", ""), ("batch", "search")],
    "a name that is a later team": [("batch", "search"), ("search", "")],
    "a name that is the team of two": [("a", "search"), ("b", "search"), ("search", "")],
}


@pytest.mark.parametrize("callers", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_caller_without_a_team_must_not_be_named_like_a_team(callers: list[tuple[str, str]]):
    """It would share cached answers and budgets with callers that it does not know."""
    message = fault(typed() | {"caller": caller_tables(callers)})

    assert ".name: 'search' is also the team of caller[" in message
    assert message.endswith("give it a team, or it would share that team's cache and budgets")


@pytest.mark.parametrize(
    "callers",
    [
        [("search", "search"), ("batch", "search")],
        [("a", ""), ("b", "")],
        [("search", "other"), ("batch", "search")],
        [("Search", ""), ("batch", "search")],
    ],
)
def test_callers_with_clear_teams_are_accepted(callers: list[tuple[str, str]]):
    """A caller that names its team belongs to that one, whatever its own name is."""
    built = build(typed() | {"caller": caller_tables(callers)}).callers

    assert [(caller.name, caller.team) for caller in built] == [(name, team or name) for name, team in callers]


def caller_tables(callers: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"name": name, "key_sha256": f"{index:064x}"} | ({"team": team} if team else {})
        for index, (name, team) in enumerate(callers)
    ]


def test_a_file_is_read(tmp_path: Path):
    """UTF-8 TOML, as it stands."""
    (tmp_path / "gate.toml").write_text(MINIMAL)

    assert read(tmp_path / "gate.toml") == build(typed())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[server", "gate.toml: not TOML: "),
        (b"a = 1\na = 2", "gate.toml: not TOML: "),
        (b"# \xff", "gate.toml: not TOML: 'utf-8' codec can't decode"),
        (b"a = " + b"1" * 9000, "gate.toml: not TOML: "),
        (None, "gate.toml: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str):
    """With the place in it, where there is one."""
    if content is not None:
        (tmp_path / "gate.toml").write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "gate.toml")

    assert said in str(caught.value)


def test_without_a_config_the_demo_model_answers():
    """It comes with the project; nothing is asked of anybody else."""
    config = default_config()

    assert [(route.model, [target.name for target in route.targets]) for route in config.routes] == [
        ("headgate-demo", ["demo"])
    ]
    assert [rule.name for rule in config.rules] == ["metadata_limits", "safety_identifier"]
    assert isinstance(config.cache_store, MemoryStore)
    assert config.server.host == "127.0.0.1"
    assert (DEMO / "model.bin").exists()


def test_with_openais_key_all_other_names_go_there(monkeypatch: pytest.MonkeyPatch):
    """The demo model keeps its name; the key is read and not shown."""
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


def test_an_empty_key_of_openais_is_none(monkeypatch: pytest.MonkeyPatch):
    """A variable that is set to nothing must not stop the start."""
    monkeypatch.setenv("OPENAI_API_KEY", "")

    assert list(default_config().backends) == ["demo"]
