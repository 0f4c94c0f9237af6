"""`python -m tests.bench.capacity`: how many processes, and what Redis, so many streams at once need, and what breaks first.

A process is one event loop, so it is simulated as a queue with one server: calls begin and events arrive at random times,
each takes the CPU time that was measured (`costs.toml`), and what arrives meanwhile waits. A process is full when an event
in a hundred waits longer than `--wait-ms`, or when it is busy for `--busy` of the time, which leaves room for what is not
simulated: large bodies, collections of garbage, the kernel.
"""

import argparse
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import quantiles

COSTS = Path(__file__).with_name("costs.toml")
ARRIVALS = 60_000
"""How many calls and events are simulated for a number of streams; the first tenth is not counted."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a stream does: `events_per_s` for `seconds`, then another call follows."""

    events_per_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """A process with so many streams: the share of time that it is busy, and what one event in a hundred waits."""

    busy: float
    wait_p99_ms: float


def simulate(streams: int, load: Load, call_s: float, event_s: float, seed: int = 0) -> Simulated:
    """Return how a process does with so many streams (Lindley's recursion over random arrivals)."""
    chance = random.Random(seed)
    events, calls = streams * load.events_per_s, streams / load.seconds
    rate = events + calls
    waited, busy, elapsed, wait = [], 0.0, 0.0, 0.0
    for number in range(ARRIVALS):
        service = call_s if chance.random() < calls / rate else event_s
        gap = chance.expovariate(rate)
        elapsed += gap
        busy += service
        if number > ARRIVALS // 10:
            waited.append(wait)
        wait = max(0.0, wait + service - gap)
    return Simulated(busy / elapsed, quantiles(waited, n=100)[-1] * 1000)


def streams_of_a_process(load: Load, call_s: float, event_s: float, wait_ms: float, busy: float) -> int:
    """Return the most streams with which a process is not full."""
    fits, full = 0, max(2, ceil(1 / (load.events_per_s * event_s + call_s / load.seconds)))
    while full - fits > max(1, full // 200):
        middle = (fits + full) // 2
        found = simulate(middle, load, call_s, event_s)
        if found.wait_p99_ms <= wait_ms and found.busy <= busy:
            fits = middle
        else:
            full = middle
    return fits


Costs = Mapping[str, Mapping[str, float]]


def limits_of_a_process(costs: Costs, load: Load, most: int) -> list[tuple[str, int]]:
    """Return what breaks, with the number of streams at which it does, in that order."""
    limits, process, redis = costs["limits"], costs["process"], costs["redis"]
    redis_s = (redis["state_ms"] + redis["cache_ms"]) / 1000 / load.seconds
    found = {
        "CPU of the process: events come late": most,
        "ports to one address of an upstream (HTTP; of a machine)": int(limits["upstream_ports"]),
        "open files of the process: connections are refused with 503": int(limits["open_files"]) // 2,
        "`memory_bytes`: calls are refused with 503": int(limits["memory_mib"] * 1024 / process["stream_kib"]),
        "one Redis for state and cache, at half of its thread (of all processes)": int(0.5 / redis_s),
    }
    return sorted(found.items(), key=lambda each: each[1])


def rows(costs: Costs, load: Load, sizes: Sequence[int], most: int) -> Iterator[tuple[str, ...]]:
    """Yield what each number of streams needs."""
    process, redis, limits = costs["process"], costs["redis"], costs["limits"]
    for streams in sizes:
        processes = ceil(streams / most)
        each = ceil(streams / processes)
        found = simulate(each, load, process["call_ms"] / 1000, process["event_us"] / 1_000_000)
        memory = process["start_mib"] * processes + streams * process["stream_kib"] / 1024
        calls = streams / load.seconds
        shares = [calls * redis[name] / 1000 for name in ("state_ms", "cache_ms")]
        yield (
            f"{streams:,}", f"{calls:,.1f}", f"{streams * load.events_per_s:,.0f}", str(processes),
            f"{found.busy:.0%}", f"{found.wait_p99_ms:.1f}", f"{memory:,.0f}",
            str(ceil(streams / limits["upstream_ports"])), *(f"{share:.0%}" for share in shares),
        )  # fmt: skip


HEADINGS = (
    "streams at once", "calls/s", "events/s", "processes", "busy", "p99 wait, ms", "memory, MiB",
    "machines by ports", "Redis of state", "Redis of cache",
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench.capacity", description=__doc__.partition("\n")[0])
    options.add_argument("--streams", type=int, nargs="+", default=[10, 1_000, 100_000], help="at once")
    options.add_argument("--events", type=float, default=20.0, help="events a second of each stream (default 20)")
    options.add_argument("--seconds", type=float, default=20.0, help="how long a stream lasts (default 20)")
    options.add_argument("--wait-ms", type=float, default=20.0, help="what one event in 100 may wait (default 20)")
    options.add_argument("--busy", type=float, default=0.6, help="how busy a process may be (default 0.6)")
    options.add_argument("--costs", type=Path, default=COSTS, help="measured costs (default: those of this folder)")
    chosen = options.parse_args()
    costs: Costs = tomllib.loads(chosen.costs.read_text(encoding="utf-8"))
    load = Load(chosen.events, chosen.seconds)
    call_s, event_s = costs["process"]["call_ms"] / 1000, costs["process"]["event_us"] / 1_000_000
    most = streams_of_a_process(load, call_s, event_s, chosen.wait_ms, chosen.busy)
    lines = [
        f"A process carries {most:,} streams of {load.events_per_s:g} events a second for {load.seconds:g} s.", "",
        f"| {' | '.join(HEADINGS)} |", f"|{'---:|' * len(HEADINGS)}",
        *(f"| {' | '.join(row)} |" for row in rows(costs, load, chosen.streams, most)), "",
        "| what breaks first | at streams of one process |", "|---|---:|",
        *(f"| {name} | {number:,} |" for name, number in limits_of_a_process(costs, load, most)),
    ]  # fmt: skip
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
