"""Config files, and the errors of invalid ones."""

import hashlib
from pathlib import Path

import pytest

from backends.replay import Replay
from backends.upstream import Upstream
from policies.metadata_limits import MetadataLimits
from proxy.config.build import build
from proxy.context import Caller
from proxy.stores.memory import MemoryStore
from tests.configs import KEY, MINIMAL, config_with, fault

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


def test_the_smallest_config_has_every_default():
    """It has a backend and a route to it."""
    config = build(config_with())

    assert (config.server.host, config.server.port, config.server.drain_s) == ("127.0.0.1", 8080, 30)
    assert (config.callers, config.rules, config.cache, config.cache_store, config.audit) == ([], [], None, None, None)
    assert isinstance(config.backends["canned"], Replay)
    assert [(route.model, [target.name for target in route.targets]) for route in config.routes] == [("*", ["canned"])]
    assert isinstance(config.state, MemoryStore)


def test_a_whole_config():
    """Each table becomes an object of the class that it names, in the order of the file."""
    config = build(config_with(f"""
[server]
host = "0.0.0.0"
port = 0

[[caller]]
name = "anna"
key = "env:GATEWAY_KEY"
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
api_key = "env:GATEWAY_KEY"
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


# Each invalid config with its error message, which starts with the path of the key.
BROKEN = {
    # Unknown keys.
    "a table": ("[sever]\nport = 1", "sever: unknown key; did you mean server?"),
    "a key outside its table": ("port = 1\n", "port: unknown key; it is one of [server]"),
    "a key of a table": ("[server]\nprot = 1", "server.prot: unknown key; did you mean port?"),
    "a key of a caller": ('[[caller]]\nname = "a"\nkye = "env:GATEWAY_KEY"', "caller[0].kye: unknown key; did you mean key?"),
    "a key of a policy": ('[[policy]]\nuse = "metadata_limits"\nmax_pair = 3', "policy[0].max_pair: unknown key; did you mean max_pairs?"),
    "a key of every policy": ('[[policy]]\nuse = "metadata_limits"\ncaller = ["a"]', "policy[0].caller: unknown key; did you mean callers?"),
    "no use but a similar key": ('[[policy]]\nUse = "size"', "policy[0].Use: unknown key; did you mean use?"),
    "a key of a backend": ('[[backend]]\nname = "b"\nuse = "replay"\npath = "x"\npace = 3', "backend[1].pace: unknown key; did you mean pace_ms?"),
    "a key of the cache": ('[cache]\nuse = "memory"\nstore_max_byte = 3', "cache.store_max_byte: unknown key; did you mean store_max_bytes?"),
    "a key of the audit": ('[audit]\npath = "x"\nallow = true', "audit.allow: unknown key; did you mean allowed?"),
    "a key of a route": ('[[route]]\nmodel = "m"\nbackend = "canned"\nbackens = []', "route[1].backens: unknown key; did you mean backends?"),
    "a key without its unit": ('[cache]\nuse = "memory"\nttl = 3', "cache.ttl: unknown key; did you mean ttl_s?"),
    "a key of the state": ("[state]\nttl = 3", "state.ttl: unknown key; did you mean ttl_days?"),
    "a key without a similar one": ("[server]\nxyzzy = 1", "server.xyzzy: unknown key"),
    # Values of the wrong type or size.
    "a port that is text": ('[server]\nport = "http"', "server.port: Input should be a valid integer"),
    "neither of two kinds": ("[server]\nworkers = 0", "server.workers: Input should be greater than 0; or: Input should be 'auto'"),
    "a port too high": ("[server]\nport = 65536", "server.port: Input should be less than or equal to 65535"),
    "a time of zero": ("[server]\nhead_timeout_s = 0", "server.head_timeout_s: Input should be greater than 0"),
    "an infinite time": ("[server]\nbody_timeout_s = inf", "server.body_timeout_s: Input should be a finite number"),
    "a value instead of a table": ("server = 3", "server: Input should be a valid table"),
    "one table instead of a list": ('[policy]\nuse = "metadata_limits"', "policy: Input should be a valid list; write [[policy]], with two brackets"),
    "an unknown mode": ('[[policy]]\nuse = "metadata_limits"\nmode = "warn"', "policy[0].mode: Input should be 'enforce', 'report' or 'off'"),
    "a share above 1": ('[[policy]]\nuse = "metadata_limits"\nrollout = 2', "policy[0].rollout: Input should be less than or equal to 1"),
    "callers as a string": ('[[policy]]\nuse = "metadata_limits"\ncallers = "anna"', 'policy[0].callers: Input should be a valid list; write ["..."], with brackets'),
    "contradictory settings": ('[[policy]]\nuse = "max_tool_calls"\nmax = 1\ndefault = 2', "policy[0]: default is 2; max allows 1"),
    "an invalid pattern": ('[[policy]]\nuse = "safety_identifier"\npattern = "("', "policy[0].pattern: not a regular expression"),
    "an invalid address": ('[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "api.example"', "backend[1].base_url: String should match pattern"),
    "a number of more than 64 bits": ('[[policy]]\nuse = "max_tool_calls"\nmax = 100000000000000000000000', "policy[0].max: the integer does not fit in 64 bits"),
    "an integer just above 64 bits": (f"[server]\nmax_body_bytes = {2**63}", "server.max_body_bytes: the integer does not fit in 64 bits"),
    "an integer just below 64 bits": (f"[server]\nport = {-(2**63) - 1}", "server.port: the integer does not fit in 64 bits"),
    "a large number as a string": (f'[[policy]]\nuse = "max_tool_calls"\nmax = "{2**63}"', "policy[0].max: Input should be a valid integer; write it without quotes"),
    "a number as a key's name": ("[[caller]]\nname = 7", "caller[0].name: Input should be a valid string; write it in quotes"),
    "a list instead of a table": ("[[server]]\nport = 1", "server: Input should be a valid table; write [server], with one bracket"),
    "a large number in a list": (f'[[policy]]\nuse = "include"\nallow = ["a", {2**64}]', "policy[0].allow[1]: the integer does not fit in 64 bits"),
    "a large number of the state": (f"[state]\nstore_max_bytes = {2**63}", "state.store_max_bytes: the integer does not fit in 64 bits"),
    "a number of thousands of digits": (f"[server]\nmax_body_bytes = 0x{'f' * 9000}", "server.max_body_bytes: the integer does not fit in 64 bits"),
    # Missing keys.
    "a policy without use": ("[[policy]]\nmax_pairs = 1", "policy[0].use: missing"),
    "a backend without use": ('[[backend]]\nname = "b"', 'backend[1].use: missing; name the kind of backend, such as use = "upstream"'),
    "a use that is not a string": ('[[backend]]\nname = "b"\nuse = 3', 'backend[1].use: missing; name the kind of backend, such as use = "upstream"'),
    "a cache without use": ("[cache]\nttl_s = 1", "cache.use: missing"),
    "a backend without a name": ('[[backend]]\nuse = "replay"\npath = "x"', "backend[1].name: missing"),
    "a caller without a name": ('[[caller]]\nkey = "env:GATEWAY_KEY"', "caller[0].name: missing"),
    "a policy without its key": ('[[policy]]\nuse = "max_tool_calls"', "policy[0].max: missing"),
    "a route without a backend": ('[[route]]\nmodel = "m"', "route[1].backend: missing; name a [[backend]]"),
    # Names of what does not exist.
    "an unknown policy": ('[[policy]]\nuse = "metadata_limit"', "policy[0].use: there is no module policies.metadata_limit; did you mean metadata_limits?"),
    "a policy of an unknown package": ('[[policy]]\nuse = "acme.rules"', "policy[0].use: there is no module acme.rules"),
    "the template": ('[[policy]]\nuse = "_template"', "policy[0].use: '_template' is not the name of a module"),
    "a policy as a path": ('[[policy]]\nuse = "../x"', "policy[0].use: '../x' is not the name of a module"),
    "a backend as a policy": ('[[policy]]\nuse = "backends.replay"', "policy[0].use: backends.replay defines 0 classes of Policy; it must define one"),
    "an unknown store": ('[cache]\nuse = "postgres"', "cache.use: there is no module proxy.stores.postgres; known: memory, redis, sqlite"),
    "an unknown state": ('[state]\nuse = "disk"', "state.use: there is no module proxy.stores.disk"),
    "a route to an unknown backend": ('[[route]]\nmodel = "m"\nbackend = "cannot"', "route[1].backend: there is no backend called 'cannot'; did you mean canned?"),
    "two backends of one name": ('[[backend]]\nname = "canned"\nuse = "replay"\npath = "y"', "backend[1].name: there are two backends called 'canned'"),
    # Secrets and callers.
    "a variable that is not set": ('[[caller]]\nname = "a"\nkey = "env:NOT_SET"', "caller[0].key: the environment variable NOT_SET is not set"),
    "a missing file": ('[[caller]]\nname = "a"\nkey = "file:/none"', "caller[0].key: the file that it names cannot be read: No such file or directory"),
    "a key instead of its name": (f'[[caller]]\nname = "a"\nkey = "{KEY}"', 'caller[0].key: a secret must be "env:NAME" or "file:PATH", not the secret itself'),
    "a key of an upstream instead of its name": (f'[[backend]]\nname = "b"\nuse = "upstream"\nbase_url = "http://x"\napi_key = "{KEY}"', 'backend[1].api_key: a secret must be "env:NAME" or "file:PATH"'),
    "a caller with two keys": (f'[[caller]]\nname = "a"\nkey = "env:GATEWAY_KEY"\nkey_sha256 = "{"a" * 64}"', "caller[0]: give either key"),
    "a caller without a key": ('[[caller]]\nname = "a"', "caller[0]: give either key"),
    "a network of too many bits": ('[server]\ntrusted_proxies = ["10.0.0.0/33"]', 'server.trusted_proxies[0]: Input should be a network without host bits, such as "10.0.0.0/8"'),
    "a network with host bits": ('[server]\ntrusted_proxies = ["::/0", "10.0.0.1/8"]', "server.trusted_proxies[1]: Input should be a network without host bits"),
    "an invalid digest": (f'[[caller]]\nname = "a"\nkey_sha256 = "{KEY}"', "caller[0].key_sha256: String should match pattern"),
    "open on all addresses": ('[server]\nhost = "0.0.0.0"', "server.host: 0.0.0.0 is reachable by others, and there is no [[caller]]"),
    "two listeners on a port": ("[admin]\nport = 8080", "admin.port: 8080 is server.port too; give each listener a port of its own"),
    "open to a network": ('[server]\nhost = "192.168.0.7"', "server.host: 192.168.0.7 is reachable by others"),
    "open on a name": ('[server]\nhost = "gateway.example"', "server.host: gateway.example is reachable by others"),
    "open on an empty host": ('[server]\nhost = ""', "server.host:  is reachable by others"),
    "one file for two": ('[audit]\npath = "x.jsonl"\n[record]\npath = "y/../x.jsonl"', "audit.path and record.path: both are x.jsonl; give each a file of its own"),
    "a secret that is not needed": ('[[policy]]\nuse = "safety_identifier"\nsource = "caller"', 'policy[0]: source = "caller" needs a key: key = "env:NAME"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_config_names_its_key(name: str):
    """The message has the key's full path, the value found and the values allowed; it repeats no secret."""
    text, expected = BROKEN[name]

    assert expected in fault(config_with(text))


@pytest.mark.parametrize("minimal", ["", MINIMAL.split("[[route]]", maxsplit=1)[0]])
def test_a_config_without_a_route_is_refused(minimal: str):
    """The message names the missing table."""
    assert (
        fault(config_with(minimal=minimal))
        == "route: there is no [[route]]; at least one must name a model and its backend"
    )


def test_a_route_without_any_backend_is_refused():
    """The message says that no backend is configured."""
    assert fault(config_with('[[route]]\nmodel = "*"\nbackend = "b"', "")) == (
        "route[0].backend: there is no backend called 'b'; known: there is none"
    )


def test_all_errors_of_a_table_are_reported_together():
    """Each error has a line."""
    message = fault(config_with('[server]\nport = -1\nprot = 3\n[[caller]]\nname = ""\n'))

    assert message.splitlines() == [
        "server.port: Input should be greater than or equal to 0",
        "server.prot: unknown key; did you mean port?",
        "caller[0].name: String should have at least 1 character",
    ]


def test_the_largest_integer_of_toml_is_accepted():
    """TOML integers have 64 bits with a sign."""
    assert build(config_with(f"[server]\nmax_body_bytes = {2**63 - 1}")).server.max_body_bytes == 2**63 - 1


def test_audit_and_record_must_be_different_files(tmp_path: Path):
    """Links are resolved: records in the audit file would break its chain."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tables = {"audit": {"path": str(tmp_path / "link")}, "record": {"path": str(tmp_path / "real")}}

    assert fault(config_with() | tables).startswith("audit.path and record.path: both are ")
    assert build(config_with() | tables | {"record": {"path": str(tmp_path / "other")}}).audit is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_gateway_without_callers_may_listen_on_loopback(host: str):
    """Only clients on this machine can reach it."""
    assert build(config_with(f'[server]\nhost = "{host}"')).server.host == host


def test_unknown_keys_inside_a_policy_have_suggestions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The unknown key may be in a table that is a field, a list element, or a value under a free name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_hints").mkdir()
    (tmp_path / "acme_hints" / "quota.py").write_text(QUOTA)
    table = {"use": "acme_hints.quota", "one": {"mots": 1}, "listed": [{}, {"mots": 1}], "named": {"a": {"mots": 1}}}

    assert fault(config_with() | {"policy": [table]}).splitlines() == [
        "policy[0].one.mots: unknown key; did you mean most?",
        "policy[0].listed[1].mots: unknown key; did you mean most?",
        "policy[0].named.a.mots: unknown key; did you mean most?",
    ]


UPSTREAM = {"name": "openai", "use": "upstream", "base_url": "https://api.openai.com/v1"}


@pytest.mark.parametrize(
    ("relay", "message"),
    [
        ({"path": "/v1/responses"}, "relay[0].path: /v1/responses is served by the gateway itself"),
        ({"path": "/v1/responses/*"}, "relay[0].path: /v1/responses/* is served by the gateway itself"),
        ({"path": "/v1/Responses/compact"}, "relay[0].path: /v1/Responses/compact is served by the gateway itself"),
        ({"path": "/v1/conversations/*"}, "relay[0].path: /v1/conversations/* is served by the gateway itself"),
        ({"path": "/v1/models"}, "relay[0].path: /v1/models is served by the gateway itself"),
        ({"path": "/v1/*"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/*"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/healthz"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/files/../responses"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/files//a"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/files/"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/f*"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/files/{id}"}, "relay[0].path: a path is below /v1/"),
        ({"path": "/v1/files", "backend": "none"}, "relay[0].backend: there is no backend called 'none'"),
        ({"path": "/v1/files", "backend": "canned"}, "relay[0].backend: 'canned' has no other paths"),
    ],
)
def test_relays_that_would_be_a_way_round_policies_are_refused(relay: dict[str, str], message: str):
    """So are paths that no request could have."""
    tables = config_with()
    tables["backend"].append(UPSTREAM)

    assert fault(tables | {"relay": [{"backend": "openai"} | relay]}).startswith(message)


def test_two_relays_of_one_path_are_refused():
    """One of them would never be used."""
    tables = config_with()
    tables["backend"].append(UPSTREAM)
    relays = [{"path": "/v1/files/*", "backend": "openai"}] * 2

    assert fault(tables | {"relay": relays}) == "relay[1].path: there are two relays of /v1/files/*"
