"""`python -m tests.bench`: what Headgate costs, against a bare aiohttp relay, measured in one run.

A fake upstream, the relay and the gate run in processes of their own; this process is the load. Servers take turns in
every round, so that what else happens on the machine hits all of them, and the table tells medians over the rounds.
A process is faster or slower by some percent for as long as it lives, by where its memory and its hashes fall: for what
should be told to a percent, start them several times.
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

from tests.bench.load import Figures, Load, WrongAnswer
from tests.bench.machine import Moment, described, disturbance
from tests.bench.processes import Server, serving
from tests.bench.serving import run
from tests.bench.table import table
from tests.bench.works import SERVERS, WORKS, Start, Work

Measured = dict[str, list[list[Figures]]]  # by the work's name, the rounds of each of its servers
UPSTREAM = Start([sys.executable, "-m", "tests.bench.upstream"], {})


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description="Headgate against a bare relay.")
    names = [work.name for work in WORKS]
    options.add_argument("--seconds", type=float, default=1.5, help="for each server, work and round (default 1.5)")
    options.add_argument("--rounds", type=int, default=5, help="how often each is measured in one start (default 5)")
    options.add_argument("--starts", type=int, default=1, help="how often all servers are started (default 1)")
    options.add_argument("--only", action="append", choices=names, help="one work; may be given again")
    chosen = options.parse_args()
    works = [work for work in WORKS if chosen.only is None or work.name in chosen.only]
    try:
        ended = run(bench(works, chosen.starts, chosen.rounds, chosen.seconds))
    except (WrongAnswer, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if ended else 130)


async def bench(works: Sequence[Work], starts: int, rounds: int, seconds: float) -> None:
    """Start everything, as often as is asked; measure; print the table."""
    load_before = os.getloadavg()[0]
    told: list[str] = []
    measured: Measured = {work.name: [[] for _ in work.servers] for work in works}
    own_began, began = sum(os.times()[:4]), Moment.now()
    for _ in range(starts):
        async with AsyncExitStack() as opened:
            folder = Path(opened.enter_context(TemporaryDirectory(prefix="headgate-bench-")))
            upstream = await opened.enter_async_context(serving("upstream", UPSTREAM, folder))
            servers = {
                name: await opened.enter_async_context(serving(name, SERVERS[name](upstream.port, folder), folder))
                for name in dict.fromkeys(name for work in works for name in work.servers)
            }
            await _measure(works, servers, measured, rounds, seconds)
            told = [
                f"{name}: up in {server.started_s:.2f} s, at most {server.peak_mb():.0f} MB."
                for name, server in servers.items()
            ]
            told.append(f"Posts of traces: {await _posts_of_traces(upstream)}.")
    own_s = sum(os.times()[:4]) - own_began  # with that of the servers, as they have ended
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    _say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {described()}.")
    _say(f"Load average at the start {load_before:.1f}; {disturbance(began, Moment.now(), own_s)}.\n")
    for line in table([(work, measured[work.name]) for work in works]):
        _say(line)
    often = "" if starts == 1 else f"{starts} times "
    _say(
        f"\nMedians of {often}{rounds} rounds of {seconds:g} s; latencies of paced streams: what comes on top of the pace."
    )
    for line in told:  # of the last start
        _say(line)


async def _measure(
    works: Sequence[Work], servers: dict[str, Server], measured: Measured, rounds: int, seconds: float
) -> None:
    # Numbers of another run never meet these: the gate is new for each run.
    numbers = itertools.count()
    for index, work in itertools.product(range(rounds), works):
        turns = list(zip(measured[work.name], work.servers, strict=True))
        for lane, name in reversed(turns) if len(turns[0][0]) % 2 else turns:  # who goes second is a little slower
            load = Load(work, servers[name], gate=name != "bare", numbers=numbers)
            figures = await load.figures(seconds)
            lane.append(figures)
            progress = f"round {index + 1} of {rounds}, {work.name}, {name}: {figures.answers / figures.seconds:,.0f}/s"
            print(progress, file=sys.stderr, flush=True)  # noqa: T201


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
