"""`python -m tests.bench`: what Headgate costs, against a bare aiohttp relay, measured in one run.

A fake upstream, the relay and the gate run in processes of their own; this process is the load. Servers take turns in
every round, so that what else happens on the machine hits all of them, and the table tells medians over the rounds.
"""

import argparse
import asyncio
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.load import Figures, Load, WrongAnswer
from tests.bench.machine import Moment, described, disturbance
from tests.bench.processes import Server, serving
from tests.bench.serving import run
from tests.bench.table import table
from tests.bench.works import SERVERS, WORKS, Start, Work

UPSTREAM = Start([sys.executable, "-m", "tests.bench.upstream"], {})


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description="Headgate against a bare relay.")
    names = [work.name for work in WORKS]
    options.add_argument("--seconds", type=float, default=1.5, help="for each server, work and round (default 1.5)")
    options.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    options.add_argument("--only", action="append", choices=names, help="one work; may be given again")
    chosen = options.parse_args()
    works = [work for work in WORKS if chosen.only is None or work.name in chosen.only]
    try:
        ended = run(bench(works, chosen.rounds, chosen.seconds))
    except (WrongAnswer, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if ended else 130)


async def bench(works: Sequence[Work], rounds: int, seconds: float) -> None:
    """Start everything, measure, print the table."""
    load_before = os.getloadavg()[0]
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="headgate-bench-")))
        upstream = await opened.enter_async_context(serving("upstream", UPSTREAM, folder))
        servers = {
            name: await opened.enter_async_context(serving(name, SERVERS[name](upstream.port, folder), folder))
            for name in dict.fromkeys(name for work in works for name in work.servers)
        }
        ours = [upstream, *servers.values()]
        began, own_began = Moment.now(), _own_s(ours)
        measured = await _measured(works, servers, rounds, seconds)
        ended, own_s = Moment.now(), _own_s(ours) - own_began
        command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
        _say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {described()}.")
        _say(f"Load average at the start {load_before:.1f}; {disturbance(began, ended, own_s)}.\n")
        for line in table([(work, measured[work.name]) for work in works]):
            _say(line)
        _say(
            f"\nMedians of {rounds} rounds of {seconds:g} s; latencies of paced streams: what comes on top of the pace."
        )
        for name, server in servers.items():
            _say(f"{name}: up in {server.started_s:.2f} s, at most {server.peak_mb():.0f} MB.")
        _say(f"Posts of traces: {await _posts_of_traces(upstream)}.")


async def _measured(
    works: Sequence[Work], servers: dict[str, Server], rounds: int, seconds: float
) -> dict[str, list[list[Figures]]]:
    """By the work's name, the rounds of each of its servers."""
    # Numbers of another run never meet these: the gate is new for each run.
    numbers = itertools.count()
    measured: dict[str, list[list[Figures]]] = {work.name: [[] for _ in work.servers] for work in works}
    for index, work in itertools.product(range(rounds), works):
        for lane, name in zip(measured[work.name], work.servers, strict=True):
            load = Load(work, servers[name], gate=name != "bare", numbers=numbers)
            figures = await load.figures(seconds)
            lane.append(figures)
            progress = f"round {index + 1} of {rounds}, {work.name}, {name}: {figures.answers / figures.seconds:,.0f}/s"
            print(progress, file=sys.stderr, flush=True)  # noqa: T201
    return measured


def _own_s(servers: Iterable[Server]) -> float:
    """The processor time of the benchmark itself, all its processes together."""
    return time.process_time() + sum(server.cpu_s() for server in servers)


async def _posts_of_traces(upstream: Server) -> int:
    """How often the gates posted traces: if never, they were not on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(b"GET /traces HTTP/1.1\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    posts = await reader.readexactly(int(length[1]) if length else 0)
    writer.close()
    return int(posts)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
