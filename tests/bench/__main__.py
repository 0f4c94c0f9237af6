"""`python -m tests.bench`: the cost of Headgate against a bare aiohttp relay, measured in one run.

A fake upstream, the relay and Headgate run in processes of their own; this process generates the load. The servers take turns
in every round, so that a disturbance of the machine affects all of them, and the table shows medians over the rounds.
README.md in this folder explains how to read the table.
"""

import argparse
import asyncio
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.event_loop import run_until_signal
from tests.bench.load import LoadRun, Measurement, UnexpectedAnswer
from tests.bench.machine import CpuSnapshot, describe_disturbance, describe_machine
from tests.bench.processes import ServerProcess, start_server
from tests.bench.servers import SERVERS, UPSTREAM, Servers, rival
from tests.bench.table import compare_dialects, describe_memory, render_table
from tests.bench.workloads import WORKLOADS, Workload, compare_with

Rounds = dict[str, list[list[Measurement]]]  # by the workload's label, the rounds of each of its servers


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description="Headgate against a bare relay.")
    names = list(dict.fromkeys(workload.name for workload in WORKLOADS))
    options.add_argument("--seconds", type=float, default=1.5, help="for each server, row and round (default 1.5)")
    options.add_argument("--rounds", type=int, default=5, help="how often each row is measured per start (default 5)")
    options.add_argument("--starts", type=int, default=1, help="how often all servers are started (default 1)")
    options.add_argument(
        "--rival", action="append", default=[], metavar="NAME=COMMAND",
        help="another gateway for the rows with a bare relay; {upstream}, {port} and {key} are filled in",
    )  # fmt: skip
    options.add_argument("--only", action="append", choices=names, help="the rows to run; may be repeated")
    chosen = options.parse_args()
    rivals = {name: rival(command) for name, _, command in (each.partition("=") for each in chosen.rival)}
    workloads = [
        each
        for workload in WORKLOADS
        if chosen.only is None or workload.name in chosen.only
        for each in (workload, *compare_with(rivals, workload))
    ]
    try:
        finished = run_until_signal(
            bench(workloads, {**SERVERS, **rivals}, chosen.starts, chosen.rounds, chosen.seconds)
        )
    except (UnexpectedAnswer, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if finished else 130)


async def bench(workloads: Sequence[Workload], servers: Servers, starts: int, rounds: int, seconds: float) -> None:
    """Start all servers as often as requested, measure, and print the table."""
    load_before = os.getloadavg()[0]
    notes: list[str] = []
    measured: Rounds = {workload.label: [[] for _ in workload.servers] for workload in workloads}
    own_start, start = sum(os.times()[:4]), CpuSnapshot.now()
    for _ in range(starts):
        notes = await _measure_one_start(workloads, servers, measured, rounds, seconds)
    own_s = sum(os.times()[:4]) - own_start  # includes the servers, because they have exited
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    _print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {describe_machine()}.")
    _print(f"Load average at the start {load_before:.1f}; {describe_disturbance(start, CpuSnapshot.now(), own_s)}.\n")
    rows = [(workload, measured[workload.label]) for workload in workloads]
    for line in render_table(rows):
        _print(line)
    if comparison := compare_dialects(rows):
        _print(f"\n{comparison}")
    if memory := describe_memory(rows):
        _print(f"\n{memory}")
    often = "" if starts == 1 else f"{starts} times "
    _print(f"\nMedians of {often}{rounds} rounds of {seconds:g} s; latencies of paced streams are without the pace.")
    for line in notes:  # of the last start
        _print(line)


async def _measure_one_start(
    workloads: Sequence[Workload], commands: Servers, measured: Rounds, rounds: int, seconds: float
) -> list[str]:
    """Start all servers, measure every round, and return lines about start times, memory and traces."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="headgate-bench-")))
        upstream = await stack.enter_async_context(start_server("upstream", UPSTREAM, folder))
        servers = {
            name: await stack.enter_async_context(start_server(name, commands[name](upstream.port, folder), folder))
            for name in dict.fromkeys(name for workload in workloads for name in workload.servers)
        }
        await _measure(workloads, servers, measured, rounds, seconds)
        notes = [
            f"{name}: up in {server.started_s:.2f} s, at most {server.peak_mb():.0f} MB."
            for name, server in servers.items()
        ]
        return [*notes, f"Posts of traces: {await _read_trace_posts(upstream)}."]


async def _measure(
    workloads: Sequence[Workload], servers: dict[str, ServerProcess], measured: Rounds, rounds: int, seconds: float
) -> None:
    numbers = itertools.count()
    for index, workload in itertools.product(range(rounds), workloads):
        turns = list(zip(measured[workload.label], workload.servers, (0, 1), strict=True))
        # The second server of a round is a little slower, so the order alternates.
        for results, name, number in reversed(turns) if len(turns[0][0]) % 2 else turns:
            load = LoadRun(
                workload.for_server(number), servers[name], is_headgate=name.startswith("headgate"), numbers=numbers,
                is_rival=name not in SERVERS,
            )  # fmt: skip
            result = await load.measure(seconds)
            results.append(result)
            rate = f"{result.answers / result.seconds:,.0f}/s"
            progress = f"round {index + 1} of {rounds}, {workload.label}, {name}: {rate}"
            print(progress, file=sys.stderr, flush=True)  # noqa: T201


async def _read_trace_posts(upstream: ServerProcess) -> int:
    """Return how often traces were posted; 0 means that tracing was off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(b"GET /traces HTTP/1.1\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    posts = await reader.readexactly(int(length[1]) if length else 0)
    writer.close()
    return int(posts)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
