"""`python -m tests.bench.tree "JSON"`: which functions one request calls, as a tree, and how often each.

Calls in Python and in C in the thread of the event loop, for a row of `tests.bench`; averages over REQUESTS requests.
Nothing is timed, so a busy machine changes nothing. With `--instructions` the instructions that the process executes for
a request instead, all threads together and without the kernel, which needs valgrind.
"""

import argparse
import asyncio
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType

import uvloop

from proxy.telemetry.logs import LogTally, configure_logs
from tests.bench.calls import NO_PUSH_MS, WARM_UP, ask, count_calls
from tests.bench.processes import ROOT, ServerProcess, start_server
from tests.bench.servers import SERVERS, UPSTREAM, ServerCommand
from tests.bench.workloads import WORKLOADS, Workload

REQUESTS = 320
VALGRIND_START_S = 300.0  # it runs fifty times as slowly
OF_ONE_PROCESS = (
    "headgate", "headgate, keeps nothing", "headgate, no policies", "headgate, all policies", "headgate, a pool",
)  # fmt: skip
"""The servers whose calls are counted, none of which needs a Redis beside it."""
Stack = tuple[str, ...]  # the names of functions, from the outermost one
SETTINGS = {"OTEL_METRIC_EXPORT_INTERVAL": NO_PUSH_MS, "OTEL_TRACES_SAMPLER_ARG": "0"}


class CallTree:
    """Counts the calls of each function by those that led to it."""

    def __init__(self) -> None:
        self.calls: Counter[Stack] = Counter()
        self.is_counting = False
        self._main = threading.get_ident()
        self._names: dict[CodeType, str] = {}

    def note(self, frame: FrameType, event: str, function: object) -> None:
        """Count one call; see `sys.setprofile`."""
        if self.is_counting and event in ("call", "c_call") and threading.get_ident() == self._main:
            names = [f"C {getattr(function, '__qualname__', function)}"] if event == "c_call" else []
            outer: FrameType | None = frame
            while outer is not None:
                names.append(self._name(outer.f_code))
                outer = outer.f_back
            self.calls[tuple(reversed(names))] += 1

    def _name(self, code: CodeType) -> str:
        if code not in self._names:
            place = code.co_filename.removeprefix(f"{ROOT}/")
            self._names[code] = f"{code.co_qualname} ({'/'.join(place.split('/')[-3:])}:{code.co_firstlineno})"
        return self._names[code]


def lines_of(calls: Mapping[Stack, int], requests: int, least: float) -> list[str]:
    """Return a line for each function: the calls of it and below it, the calls of it, and its name.

    Those with fewer than `least` calls for each request, with those below them, are left out.
    """
    below: Counter[Stack] = Counter()
    for path, count in calls.items():
        for length in range(1, len(path) + 1):
            below[path[:length]] += count
    inner: dict[Stack, list[Stack]] = {}
    for path in below:
        inner.setdefault(path[:-1], []).append(path)
    lines: list[str] = []
    waiting = sorted(inner.get((), []), key=below.__getitem__)
    while waiting:
        path = waiting.pop()
        if below[path] >= least * requests:
            counts = f"{below[path] / requests:8.1f}{calls.get(path, 0) / requests:8.2f}"
            lines.append(f"{counts} {'  ' * (len(path) - 1)}{path[-1]}")
            waiting += sorted(inner.get(path, []), key=below.__getitem__)
    return lines


def print_tree(config: Path, body: bytes, least: float) -> None:
    """Run the gateway in this process, and print the tree of a request."""
    tree, tally = CallTree(), LogTally()
    threading.setprofile(tree.note)
    sys.setprofile(tree.note)
    configure_logs(console=False, level=logging.INFO, final=True, tally=tally)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(count_calls(config, tally, tree, body, REQUESTS))
    sys.setprofile(None)
    sys.stdout.writelines(f"{line}\n" for line in lines_of(tree.calls, REQUESTS, least))
    sys.stdout.write(f"{tree.calls.total() / REQUESTS:8.1f} calls of functions\n")


async def count_instructions(server: ServerCommand, body: bytes, folder: Path) -> float:
    """Return the instructions of a request, of a gateway that runs in valgrind."""
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/callgrind.out"]
    numbers = itertools.count()
    in_valgrind = ServerCommand([*valgrind, *server.command], server.environment)
    async with start_server("gateway", in_valgrind, folder, VALGRIND_START_S) as gateway:
        await asyncio.to_thread(ask, gateway.port, WARM_UP, body, numbers)
        _control(gateway, "--instr=on")
        await asyncio.to_thread(ask, gateway.port, WARM_UP, body, numbers)  # valgrind translates the code anew
        _control(gateway, "--zero")
        await asyncio.to_thread(ask, gateway.port, REQUESTS, body, numbers)
        _control(gateway, "--dump")
        _control(gateway, "--instr=off")
    return _total_of(folder / "callgrind.out.1") / REQUESTS


def _control(gateway: ServerProcess, command: str) -> None:
    subprocess.run(["callgrind_control", command, str(gateway.pid)], check=True, capture_output=True)


def _total_of(profile: Path) -> int:
    """Return how many instructions the first dump of a profile has."""
    return max(map(int, re.findall(r"^(?:summary|totals): (\d+)", profile.read_text(), re.MULTILINE)))


async def run(workload: Workload, least: float, *, has_instructions: bool) -> None:
    """Start the upstream and the gateway of a workload, and print what its requests take."""
    with TemporaryDirectory(prefix="headgate-tree-") as name:
        async with start_server("upstream", UPSTREAM, Path(name)) as upstream:
            server = SERVERS[workload.servers[1]](upstream.port, Path(name))
            environment = {**server.environment, **SETTINGS}
            if has_instructions:
                count = await count_instructions(ServerCommand(server.command, environment), workload.body, Path(name))
                sys.stdout.write(f"{count:,.0f} instructions\n")
                return
            config = next(word for word in server.command if word.endswith(".toml"))
            command = [
                sys.executable,
                "-m",
                "tests.bench.tree",
                workload.label,
                "--config",
                config,
                "--least",
                str(least),
            ]
            process = await asyncio.create_subprocess_exec(*command, env=os.environ | environment, stderr=DEVNULL)
            await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    labels = [each.label for each in WORKLOADS if each.servers[1] in OF_ONE_PROCESS and not each.is_socket]
    parser.add_argument("workload", choices=labels)
    parser.add_argument("--least", type=float, default=0.5, help="leave out what is called less often for each request")
    parser.add_argument("--instructions", action="store_true", help="count instructions instead of calls")
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)  # of the gateway that this process runs
    options = parser.parse_args()
    workload = next(each for each in WORKLOADS if each.label == options.workload).for_server(1)
    if options.config is not None:
        print_tree(options.config, workload.body, options.least)
    else:
        asyncio.run(run(workload, options.least, has_instructions=options.instructions))


if __name__ == "__main__":
    main()
