"""`python -m tests.bench.local`: what a served model makes of the engine that it runs on, measured in one run.

The gate is a real one, asked over HTTP; the yardstick is the library itself in a process of its own, with the very same
prompts. Both take turns in every round while the other one is idle, and the table tells medians, of ratios too, so that
what else happens on the machine hits both.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from backends.local.host.device import Placement
from backends.local.model import read_model
from tests.bench.load import WrongAnswer
from tests.bench.local_caller import Caller
from tests.bench.local_gate import family_s, gate
from tests.bench.local_raw import raw
from tests.bench.local_rows import CALLERS, PERSON_STEPS, ROWS, Bench, Row, Taken
from tests.bench.local_table import table
from tests.bench.machine import Moment, described, disturbance
from tests.bench.models import SHAPES, Shape, write_random, write_saying
from tests.bench.processes import serving
from tests.bench.serving import run

DEMO = Path("backends/demo")


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench.local", description="A served model against its engine."
    )
    options.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    options.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="one; may be given again")
    options.add_argument("--model", choices=SHAPES, default="m100", help="how large the random one is (default m100)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models run (default cpu)")
    options.add_argument("--compute-type", default="default", help="how they calculate: bfloat16, int8_float16 ...")
    options.add_argument("--workers", type=int, default=2, help="batches at once (default 2)")
    chosen = options.parse_args()
    placement = Placement(chosen.device, compute_type=chosen.compute_type, workers=chosen.workers)
    rows = [row for row in ROWS if chosen.only is None or row.name in chosen.only]
    try:
        ended = run(bench(rows, chosen.rounds, SHAPES[chosen.model], placement))
    except (WrongAnswer, ConnectionError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if ended else 130)


async def bench(rows: Sequence[Row], rounds: int, shape: Shape, placement: Placement) -> None:
    """Start everything, measure, print the table."""
    load_before = os.getloadavg()[0]
    async with started(shape, placement) as running:
        began, own_began = Moment.now(), _own_s(running)
        measured = await _measured(running, rows, rounds)
        ended, own_s = Moment.now(), _own_s(running) - own_began
        command = shlex.join(["python", "-m", "tests.bench.local", *sys.argv[1:]])
        _say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {described()}.")
        _say(f"Load average at the start {load_before:.1f}; {disturbance(began, ended, own_s)}.\n")
        for line in table([(row, measured[row.name]) for row in rows]):
            _say(line)
        _say(f"\nMedians of {rounds} rounds. The gate: up in {running.gate.started_s:.1f} s.")


@asynccontextmanager
async def started(shape: Shape, placement: Placement) -> AsyncIterator[Bench]:
    """The gate and the library, each with its processes, and the callers."""
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="headgate-bench-")))
        random, saying = write_random(folder / "random", shape), write_saying(folder / "saying", PERSON_STEPS)
        library = await opened.enter_async_context(raw(random, placement))
        models = {"random": random, "saying": saying, "demo": DEMO}
        server = await opened.enter_async_context(serving("gate", gate(folder, models, placement), folder))
        callers = [await Caller.connected(server.port) for _ in range(CALLERS)]
        for caller in callers:
            opened.callback(caller.close)
        yield Bench(library, server, callers, read_model(random))


async def _measured(running: Bench, rows: Sequence[Row], rounds: int) -> Mapping[str, list[tuple[Taken, Taken]]]:
    """By the row's name, what each round found of both lanes."""
    measured: dict[str, list[tuple[Taken, Taken]]] = {row.name: [] for row in rows}
    for index in range(rounds):
        for row in rows:
            measured[row.name].append(await row.work(running))
            told = " against ".join(row.unit.format(*taken) for taken in reversed(measured[row.name][-1]))
            print(f"round {index + 1} of {rounds}, {row.name}: {told}", file=sys.stderr, flush=True)  # noqa: T201
    return measured


def _own_s(running: Bench) -> float:
    """The processor time of the benchmark itself, all its processes together."""
    return time.process_time() + family_s(running.gate.pid) + family_s(running.library.pid)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
