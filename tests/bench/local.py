"""`python -m tests.bench.local`: how much of its engine's speed a served local model keeps, measured in one run.

A real Headgate is called over HTTP; the baseline is the library itself in a process of its own, with the same prompts.
They take turns in every round while the other is idle, and the table shows medians, also of the ratios, so that a
disturbance of the machine affects both.
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
from tests.bench.event_loop import run_until_signal
from tests.bench.load import UnexpectedAnswer
from tests.bench.local_caller import LocalCaller
from tests.bench.local_headgate import headgate_with_models, process_tree_cpu_s
from tests.bench.local_library import start_library
from tests.bench.local_rows import CALLERS, ROWS, STORY_STEPS, LocalBench, LocalRow, Values
from tests.bench.local_table import render_local_table
from tests.bench.machine import CpuSnapshot, describe_disturbance, describe_engine, describe_machine
from tests.bench.models import SIZES, ModelSize, write_random, write_saying
from tests.bench.processes import start_server

DEMO = Path("backends/demo")


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench.local", description="A served local model against its engine."
    )
    options.add_argument("--rounds", type=int, default=5, help="how often each row is measured (default 5)")
    options.add_argument(
        "--only", action="append", choices=[row.name for row in ROWS], help="the rows to run; may be repeated"
    )
    options.add_argument("--model", choices=SIZES, default="m100", help="the size of the random model (default m100)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the models run (default cpu)")
    options.add_argument("--compute-type", default="default", help="number format: bfloat16, int8_float16 ...")
    options.add_argument("--workers", type=int, default=2, help="batches at once (default 2)")
    chosen = options.parse_args()
    placement = Placement(chosen.device, compute_type=chosen.compute_type, workers=chosen.workers)
    rows = [row for row in ROWS if chosen.only is None or row.name in chosen.only]
    try:
        finished = run_until_signal(bench(rows, chosen.rounds, SIZES[chosen.model], placement))
    except (UnexpectedAnswer, ConnectionError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if finished else 130)


async def bench(rows: Sequence[LocalRow], rounds: int, size: ModelSize, placement: Placement) -> None:
    """Start all processes, measure, and print the table."""
    load_before = os.getloadavg()[0]
    async with start_all(size, placement) as running:
        start, own_start = CpuSnapshot.now(), _own_cpu_s(running)
        measured = await _measure(running, rows, rounds)
        end, own_s = CpuSnapshot.now(), _own_cpu_s(running) - own_start
        command = shlex.join(["python", "-m", "tests.bench.local", *sys.argv[1:]])
        _print(
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {describe_machine()}, {describe_engine(placement.device)}."
        )
        _print(f"Load average at the start {load_before:.1f}; {describe_disturbance(start, end, own_s)}.\n")
        for line in render_local_table([(row, measured[row.name]) for row in rows]):
            _print(line)
        _print(f"\nMedians of {rounds} rounds. Headgate: up in {running.headgate.started_s:.1f} s.")


@asynccontextmanager
async def start_all(size: ModelSize, placement: Placement) -> AsyncIterator[LocalBench]:
    """Start Headgate, the library and the callers. Leaving the block stops them."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="headgate-bench-")))
        random, saying = write_random(folder / "random", size), write_saying(folder / "saying", STORY_STEPS)
        library = await stack.enter_async_context(start_library(random, placement))
        models = {"random": random, "saying": saying, "demo": DEMO}
        command = headgate_with_models(folder, models, placement)
        headgate = await stack.enter_async_context(start_server("headgate", command, folder))
        callers = [await LocalCaller.connect(headgate.port) for _ in range(CALLERS)]
        for caller in callers:
            stack.callback(caller.close)
        yield LocalBench(library, headgate, callers, read_model(random))


async def _measure(
    running: LocalBench, rows: Sequence[LocalRow], rounds: int
) -> Mapping[str, list[tuple[Values, Values]]]:
    """Return, by the row's name, the values of both sides in each round."""
    measured: dict[str, list[tuple[Values, Values]]] = {row.name: [] for row in rows}
    for index in range(rounds):
        for row in rows:
            values = await row.measure(running)
            measured[row.name].append(values)
            shown = " against ".join(row.unit.format(*side) for side in reversed(values))
            print(f"round {index + 1} of {rounds}, {row.name}: {shown}", file=sys.stderr, flush=True)  # noqa: T201
    return measured


def _own_cpu_s(running: LocalBench) -> float:
    """Return the processor time of all processes of the benchmark."""
    return time.process_time() + process_tree_cpu_s(running.headgate.pid) + process_tree_cpu_s(running.library.pid)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
