"""The rows of the table: what is sent, over how many connections, and to which servers.

To add a row, add a Workload to WORKLOADS.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import orjson

from tests.bench.answers import (
    BURST_DELTAS,
    BURST_EVENTS,
    DIALECTS,
    PACED_DELTAS,
    PACED_EVENTS,
    PACED_S,
    SLOW_S,
    SLOW_TICK_S,
    TICK_S,
)
from tests.bench.servers import SINKS

COUNTER = b"00000000"  # the load replaces it with a number that is different in every request


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load on two servers. Its ratio is the second server's rate divided by the first server's."""

    name: str  # the value of --only; workloads that belong together share it
    label: str  # the first column of the table, different in every workload
    body: bytes
    connections: int
    servers: tuple[str, str] = ("bare", "headgate")
    events: int = 0  # in every answer; 0: the answer is not a stream
    pace_s: float = 0.0  # how long the upstream takes on purpose; latencies are reported without it
    cache_status: bytes = b"fwd=bypass"  # part of the Cache-Status header of every answer of Headgate
    dialect: str = ""  # how the upstream writes the events, where several are compared
    is_socket: bool = False  # whether the requests are messages in WebSocket mode
    second_body: bytes = b""  # what the second server gets, if it gets something else
    first_has_cache: bool = True  # whether the first server, if it is a Headgate, has a cache

    @property
    def is_cached(self) -> bool:
        """Whether Headgate looks it up in its cache."""
        return self.cache_status != b"fwd=bypass"

    def for_server(self, number: int) -> "Workload":
        """Return the workload with the body that the first server (0) or the second (1) gets."""
        if number == 0 and not self.first_has_cache:
            return replace(self, cache_status=b"")
        return replace(self, body=self.second_body) if number and self.second_body else self


def build_body(model: str, **fields: object) -> bytes:
    """Return a request of about 1 kB as agents send it, with a tool, metadata and a safety identifier."""
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
        **fields,
    })  # fmt: skip


def build_burst(dialect: str) -> Workload:
    """Return the row of a stream that the upstream writes at once, in one of the DIALECTS."""
    label = f"stream, burst of {BURST_DELTAS} deltas, {dialect}"
    body = build_body(f"burst {dialect}", stream=True)
    return Workload("burst", label, body, 16, events=BURST_EVENTS, dialect=dialect)


def compare_with(rivals: Iterable[str], workload: Workload) -> Iterator[Workload]:
    """Yield a row for each of these servers beside the bare relay, if the workload is one that any gateway can serve."""
    if workload.servers == ("bare", "headgate") and not workload.is_socket and not workload.is_cached:
        for name in rivals:
            yield replace(workload, label=f"{workload.label}, {name}", servers=("bare", name), dialect="")


LARGE_CHARS = 200_000
MANY = f"1,000 streams at once, {PACED_DELTAS} deltas {1000 * SLOW_TICK_S:g} ms apart"
SOCKETS_BEHIND = f"WebSocket at both ends, burst of {BURST_DELTAS} deltas"
SOCKETS = f"WebSocket, burst of {BURST_DELTAS} deltas"
PACED = f"100 streams at once, {PACED_DELTAS} deltas {1000 * TICK_S:g} ms apart"
WORKLOADS = (
    Workload("json", "JSON", build_body("json"), 32),
    Workload("different", "JSON, each body different", build_body("json", seed=COUNTER.decode()), 32),
    Workload("large", "JSON, 200 kB each way", build_body("large", instructions="x" * LARGE_CHARS), 8),
    Workload(
        "everything", "JSON, all policies", build_body("json"), 32, servers=("bare", "headgate, all policies"),
    ),
    *map(build_burst, DIALECTS),
    Workload(
        "websocket", SOCKETS, build_body("burst compact", type="response.create", stream=True), 16,
        events=BURST_EVENTS - 1, is_socket=True,
    ),
    Workload(
        "websocket", SOCKETS_BEHIND, build_body("burst compact", type="response.create", stream=True), 16,
        servers=("bare, WebSocket", "headgate, WebSocket"), events=BURST_EVENTS - 1, is_socket=True,
    ),
    Workload("tls", "JSON, TLS to the upstream", build_body("json"), 32, servers=("bare, TLS", "headgate, TLS")),
    Workload(
        "tls", f"stream, burst of {BURST_DELTAS} deltas, compact, TLS to the upstream",
        build_body("burst compact", stream=True), 16, servers=("bare, TLS", "headgate, TLS"), events=BURST_EVENTS,
    ),
    Workload("paced", PACED, build_body("paced", stream=True), 100, events=PACED_EVENTS, pace_s=PACED_S),
    Workload("many", MANY, build_body("slow", stream=True), 1000, events=PACED_EVENTS, pace_s=SLOW_S),
    Workload(
        "hits", "JSON, cache hit", build_body("json", prompt_cache_key="bench"), 32, cache_status=b"headgate; hit",
    ),
    Workload(
        "hits", "JSON, cache hit in Redis", build_body("json", prompt_cache_key="bench"), 32,
        servers=("bare", "headgate, Redis"), cache_status=b"headgate; hit",
    ),
    Workload(
        "hits", "JSON, cache hit in Redis, read each time", build_body("json", prompt_cache_key="bench"), 32,
        servers=("bare", "headgate, Redis each time"), cache_status=b"headgate; hit",
    ),
    Workload(
        "misses", "JSON, cache miss, then stored",
        build_body("json", prompt_cache_key="bench", seed=COUNTER.decode()), 32, cache_status=b"fwd=uri-miss",
    ),
    *(
        Workload(
            "misses", f"JSON, no cache, and a cache miss, {then}",
            build_body("json", prompt_cache_key="bench", seed=COUNTER.decode()), 32,
            servers=("headgate, no cache", server), cache_status=b"fwd=uri-miss", first_has_cache=False,
        )
        for then, server in (("not stored", "headgate, keeps nothing"), ("then stored", "headgate"))
    ),
    Workload(
        "ownership", "JSON, store: false and store: true", build_body("json", store=False), 32,
        servers=("headgate, state in Redis", "headgate, state in Redis"), second_body=build_body("json", store=True),
    ),
    Workload(
        "limits", "JSON, state in Redis, and issued keys, a rate and a budget", build_body("json", store=False), 32,
        servers=("headgate, state in Redis", "headgate, limits"),
    ),
    Workload(
        "workers", "JSON, one worker and two", build_body("json", store=False), 64,
        servers=("headgate, one worker", "headgate, two workers"),
    ),
    Workload(
        "pools", "JSON, one backend and a pool", build_body("json"), 32, servers=("headgate", "headgate, a pool"),
    ),
    Workload(
        "observed", "JSON, nothing observed, and metrics, logs and 1 % of the traces", build_body("json"), 32,
        servers=("headgate, not observed", "headgate"),
    ),
    *(
        Workload(
            "sinks", f"JSON, a collector that works, and one that {sink}", build_body("json"), 32,
            servers=("headgate", f"headgate, sink {sink}"),
        )
        for sink in SINKS
    ),
    Workload(
        "policies", "JSON, no policies and all policies", build_body("json"), 32,
        servers=("headgate, no policies", "headgate, all policies"),
    ),
)  # fmt: skip
