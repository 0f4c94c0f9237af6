"""What is measured: each work is one row here, and each server that it is asked of one function below.

To add a work, add a row to WORKS. To add a server, such as a gate with other policies, add it to SERVERS.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from tests.bench.answers import BURST_EVENTS, PACED_EVENTS, PACED_S

KEY = "bench-key"  # what callers show to the gate, and the gate to its upstream
COUNTER = b"00000000"  # stands in a body for a number that never comes twice


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load. Its ratio is the last server's rate over the first's."""

    name: str
    told: str  # in the table
    body: bytes
    connections: int
    servers: tuple[str, str] = ("bare", "headgate")
    events: int = 0  # in every answer; 0: the answer is no stream
    pace_s: float = 0.0  # what the upstream takes on purpose; latencies are told without it
    cache_status: bytes = b"fwd=bypass"  # what every answer of a gate must tell


@dataclass(frozen=True, slots=True)
class Start:
    """How a server is started: it prints its address, port included, as the first line."""

    command: Sequence[str]
    environment: Mapping[str, str]


def body(model: str, **more: object) -> bytes:
    """A request as agents send it: about 1 kB, with a tool, metadata and who is behind it."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return orjson.dumps({
        "model": model,
        "instructions": "You answer in one short paragraph, politely, and say so when you do not know. " * 4,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is the weather in Bern? " * 8}]}],
        "tools": [{"type": "function", "name": "weather", "parameters": parameters, "strict": True}],
        "metadata": {"project": "bench", "stage": "load", "ticket": "HG-2"},
        "safety_identifier": "user_5f1c0b8e9d7a4f33",
        "max_tool_calls": 4,
        "max_output_tokens": 256,
        **more,
    })  # fmt: skip


PACED = f"streams, 50 deltas 20 ms apart, 100 at once ({PACED_S:g} s each)"
WORKS = (
    Work("json", "JSON", body("json"), 32),
    Work("burst", "streams, 200 deltas in one burst", body("burst", stream=True), 16, events=BURST_EVENTS),
    Work("paced", PACED, body("paced", stream=True), 100, events=PACED_EVENTS, pace_s=PACED_S),
    Work("hits", "JSON, cache hit", body("json", prompt_cache_key="bench"), 32, cache_status=b"headgate; hit"),
    Work(
        "misses", "JSON, looked up, missed and kept",
        body("json", prompt_cache_key="bench", seed=COUNTER.decode()), 32, cache_status=b"fwd=uri-miss",
    ),
    Work(
        "policies", "JSON, no policy and every policy", body("json"), 32,
        servers=("headgate, no policies", "headgate, every policy"),
    ),
)  # fmt: skip


def relay(upstream: int, _folder: Path) -> Start:
    """The bare relay."""
    return Start([sys.executable, "-m", "tests.bench.relay", str(upstream)], {})


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


EVERY_POLICY = f"""{POLICIES}
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


def gate(upstream: int, folder: Path) -> Start:
    """Headgate as an organisation runs it."""
    return headgate(upstream, folder / "gate.toml", POLICIES)


def gate_without_policies(upstream: int, folder: Path) -> Start:
    return headgate(upstream, folder / "no_policies.toml", "")


def gate_with_every_policy(upstream: int, folder: Path) -> Start:
    return headgate(upstream, folder / "every_policy.toml", EVERY_POLICY)


def headgate(upstream: int, config: Path, policies: str) -> Start:
    """Callers with keys, policies, a cache in memory, a log line per request, 1 % of the traces sent to a collector."""
    config.write_text(f"""
[server]
port = 0
[[caller]]
name = "bench"
key = "env:BENCH_KEY"
{policies}
[cache]
use = "memory"
[[backend]]
name = "fake"
use = "upstream"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_KEY"
keeps_state = true
[[route]]
model = "*"
backend = "fake"
""")
    environment = {
        "BENCH_KEY": KEY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{upstream}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }
    return Start([sys.executable, "-m", "proxy", "serve", "--config", str(config)], environment)


SERVERS: Mapping[str, Callable[[int, Path], Start]] = {
    "bare": relay,
    "headgate": gate,
    "headgate, no policies": gate_without_policies,
    "headgate, every policy": gate_with_every_policy,
}
