"""The servers under test, each with the command that starts it. To add one, add a function to SERVERS."""

import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.request import urlopen

API_KEY = "bench-key"  # callers send it to Headgate, and Headgate sends it to its upstream


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """The command that starts a server. Without a port the server prints its address as its first line."""

    command: Sequence[str]
    environment: Mapping[str, str]
    port: int = 0


SINKS = ("hangs", "refuses", "fails", "crawls")
"""Collectors that never answer, take no connection, answer 503, and answer after a while."""
CLOSED = "http://127.0.0.1:1"
UPSTREAM = ServerCommand([sys.executable, "-m", "tests.bench.upstream"], {})
POLICIES = """
[[policy]]
use = "metadata_limits"
[[policy]]
use = "max_tool_calls"
max = 8
default = 8
on_exceed = "clamp"
[[policy]]
use = "safety_identifier"
require = true
pattern = "[A-Za-z0-9_-]+"
"""
ALL_POLICIES = f"""{POLICIES}
[[policy]]
use = "models"
deny = ["*-pro"]
[[policy]]
use = "tools"
code_interpreter = false
[[policy]]
use = "output_tokens"
max = 32_768
[[policy]]
use = "include"
deny = ["message.output_text.logprobs"]
[[policy]]
use = "service_tier"
allow = ["auto", "default"]
[[policy]]
use = "retention"
background = "deny"
[[policy]]
use = "input_urls"
[[policy]]
use = "size"
max_items = 2_000
max_text_chars = 1_000_000
"""
ROUTE = """
[[route]]
model = "*"
backend = "fake"
"""
POOL = """
max_concurrent = 1_000
total_timeout_s = 600
slow_start_after_s = 30
[[backend]]
name = "twin"
use = "upstream"
base_url = "http://127.0.0.1:UPSTREAM/v1"
api_key = "env:BENCH_KEY"
keeps_state = true
max_concurrent = 1_000
total_timeout_s = 600
slow_start_after_s = 30
[[route]]
model = "*"
backends = ["fake", "twin"]
strategy = "affinity"
fallback = [{ route = "last" }]
[[route]]
model = "last"
name = "last"
backend = "twin"
"""
LIMITS = """
[keys]
[[policy]]
use = "rate"
requests = 1_000_000_000
tokens = 1_000_000_000_000
[[policy]]
use = "budget"
limit = 1_000_000_000_000
"""


def relay(upstream: int, _folder: Path) -> ServerCommand:
    """Return the command of the bare relay."""
    return ServerCommand([sys.executable, "-m", "tests.bench.relay", str(upstream)], {})


def socket_relay(upstream: int, _folder: Path) -> ServerCommand:
    """Return the command of the bare relay that speaks WebSocket with the upstream."""
    return ServerCommand([sys.executable, "-m", "tests.bench.relay", str(upstream), "websocket"], {})


def secure_upstream(upstream: int) -> tuple[str, str]:
    """Return the port at which the upstream speaks TLS, and the path of its certificate."""
    with urlopen(f"http://127.0.0.1:{upstream}/tls") as answer:
        port, _, certificate = answer.read().decode().partition(" ")
    return port, certificate


def secure_relay(upstream: int, _folder: Path) -> ServerCommand:
    """Return the command of the bare relay that speaks TLS with the upstream."""
    return ServerCommand([sys.executable, "-m", "tests.bench.relay", *secure_upstream(upstream)], {})


def headgate_before_tls(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate that speaks TLS with the upstream."""
    config, (port, certificate) = folder / "tls.toml", secure_upstream(upstream)
    own = headgate(upstream, config, POLICIES)
    address = f'"https://127.0.0.1:{port}/v1"\nca_file = "{certificate}"'
    config.write_text(config.read_text().replace(f'"http://127.0.0.1:{upstream}/v1"', address))
    return own


def headgate_with_three_policies(upstream: int, folder: Path) -> ServerCommand:
    return headgate(upstream, folder / "three_policies.toml", POLICIES)


def headgate_without_cache(upstream: int, folder: Path) -> ServerCommand:
    return headgate(upstream, folder / "no_cache.toml", POLICIES, cache="")


def headgate_that_keeps_nothing(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate that looks calls up, and finds every answer too large to be kept."""
    return headgate(upstream, folder / "keeps_nothing.toml", POLICIES, cache='use = "memory"\nmax_reply_bytes = 1')


def headgate_without_policies(upstream: int, folder: Path) -> ServerCommand:
    return headgate(upstream, folder / "no_policies.toml", "")


def headgate_with_all_policies(upstream: int, folder: Path) -> ServerCommand:
    return headgate(upstream, folder / "all_policies.toml", ALL_POLICIES)


def headgate_with_a_pool(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate whose route has everything: two backends with limits, affinity and a fallback."""
    return headgate(upstream, folder / "pool.toml", POLICIES, POOL)


def headgate_before_websocket(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate that speaks WebSocket with the upstream."""
    return headgate(upstream, folder / "websocket.toml", POLICIES, f"websocket = true\n{ROUTE}")


def headgate_unobserved(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate without metrics, traces and log lines of requests."""
    return headgate(upstream, folder / "unobserved.toml", POLICIES, is_observed=False)


def headgate_with_sink(sink: str, upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate whose traces and metrics go to a collector that is in trouble."""
    own = headgate(upstream, folder / f"{sink}.toml", POLICIES)
    return ServerCommand(own.command, {**own.environment, **telemetry_variables(upstream, sink)})


def headgate_with_redis(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate with a Redis that ends with it, which holds hits in the process for one second."""
    return before_redis(upstream, folder / "redis.toml", cache='use = "redis"\nurl = "REDIS"\ntimeout_ms = 2000')


def headgate_reading_redis(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate that reads Redis for each hit."""
    return before_redis(
        upstream, folder / "each_time.toml", cache='use = "redis"\nurl = "REDIS"\ntimeout_ms = 2000\nlocal_ttl_s = 0'
    )


def headgate_with_state(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate with a Redis that keeps the owners of what the upstream keeps."""
    return before_redis(
        upstream, folder / "state.toml", f'{ROUTE}[state]\nuse = "redis"\nurl = "REDIS"\ntimeout_ms = 2000'
    )


def headgate_with_limits(upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate with a Redis that has issued keys, a rate and a budget, none of which is reached."""
    return before_redis(upstream, folder / "limits.toml", f'{ROUTE}{LIMITS}[state]\nuse = "redis"\nurl = "REDIS"')


def headgate_with_workers(count: int, upstream: int, folder: Path) -> ServerCommand:
    """Return a Headgate of so many worker processes."""
    state = f'[state]\nuse = "sqlite"\npath = "{folder}/workers_{count}.db"'
    config = folder / f"workers_{count}.toml"
    own = headgate(upstream, config, POLICIES, f"{ROUTE}{state}")
    config.write_text(config.read_text().replace("[server]", f"[server]\nworkers = {count}", 1))
    return own


def before_redis(upstream: int, config: Path, route: str = ROUTE, cache: str = 'use = "memory"') -> ServerCommand:
    """Return the command that starts a Redis, whose address replaces REDIS, and becomes a Headgate that uses it."""
    socket_path = config.with_suffix(".sock")
    address = f"unix://{socket_path}"
    route, cache = (text.replace("REDIS", address) for text in (route, cache))
    own = headgate(upstream, config, POLICIES, route, cache=cache)
    redis = [
        "setpriv", "--pdeathsig", "KILL", "redis-server", "--port", "0", "--unixsocket", str(socket_path), "--save", "",
    ]  # fmt: skip
    script = f"{shlex.join(redis)} >/dev/null & exec {shlex.join(own.command)}"
    return ServerCommand(["sh", "-c", script], own.environment)


def headgate(
    upstream: int, config: Path, policies: str, route: str = ROUTE, *, is_observed: bool = True,
    cache: str = 'use = "memory"',
) -> ServerCommand:  # fmt: skip
    """Return the command of a Headgate set up as in production.

    It has callers with keys, policies, a cache in memory, metrics, one log line per request, and sends 1 % of the
    traces.
    """
    admin = "[admin]\nport = 0" if is_observed else ""
    config.write_text(f"""
[server]
port = 0
{admin}
[[caller]]
name = "bench"
key = "env:BENCH_KEY"
{policies}
{cache and "[cache]"}
{cache}
[[backend]]
name = "fake"
use = "upstream"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_KEY"
keeps_state = true
{route.replace("UPSTREAM", str(upstream))}
""")
    serve = ["serve", "--config", str(config)]
    if not is_observed:
        return ServerCommand([sys.executable, "-m", "tests.bench.silent", *serve], {"BENCH_KEY": API_KEY})
    environment = {"BENCH_KEY": API_KEY, **telemetry_variables(upstream)}
    return ServerCommand([sys.executable, "-m", "proxy", *serve], environment)


def telemetry_variables(upstream: int, sink: str = "") -> Mapping[str, str]:
    """Return the variables with which 1 % of the traces, and metrics, are sent. A `sink` is one of SINKS."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": CLOSED
        if sink == "refuses"
        else f"http://127.0.0.1:{upstream}/{sink}".rstrip("/"),
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }


def rival(command: str) -> Callable[[int, Path], ServerCommand]:
    """Return the server that a command starts; `{upstream}` and `{port}` in it are replaced by ports, `{key}` by a key.

    Raises KeyError and ValueError for other words in braces.
    """

    def start(upstream: int, _folder: Path) -> ServerCommand:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = [word.format(upstream=upstream, port=port, key=API_KEY) for word in shlex.split(command)]
        return ServerCommand(words, {}, port)

    return start


Servers = Mapping[str, Callable[[int, Path], ServerCommand]]
"""By the name of a server, how it is started: with the port of the upstream and a folder for its files."""
SERVERS: Servers = {
    "bare": relay,
    "bare, WebSocket": socket_relay,
    "bare, TLS": secure_relay,
    "headgate": headgate_with_three_policies,
    "headgate, TLS": headgate_before_tls,
    "headgate, a pool": headgate_with_a_pool,
    "headgate, WebSocket": headgate_before_websocket,
    "headgate, not observed": headgate_unobserved,
    "headgate, Redis": headgate_with_redis,
    "headgate, Redis each time": headgate_reading_redis,
    "headgate, state in Redis": headgate_with_state,
    "headgate, limits": headgate_with_limits,
    "headgate, one worker": partial(headgate_with_workers, 1),
    "headgate, two workers": partial(headgate_with_workers, 2),
    **{f"headgate, sink {sink}": partial(headgate_with_sink, sink) for sink in SINKS},
    "headgate, no cache": headgate_without_cache,
    "headgate, keeps nothing": headgate_that_keeps_nothing,
    "headgate, no policies": headgate_without_policies,
    "headgate, all policies": headgate_with_all_policies,
}
