"""`python -m tests.bench.calls`: what observing a JSON request costs, in calls of functions instead of seconds.

Each variant of Headgate runs in a process of its own, where calls of functions in Python and in C are counted, in the
thread of the event loop and in those that write logs and send metrics and spans. Nothing is timed, so a busy machine
changes nothing.
"""

import asyncio
import itertools
import logging
import os
import socket
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import BinaryIO, Protocol

import uvloop

from proxy.app import running
from proxy.config.build import read as read_config
from proxy.telemetry.finished import FinishedRequests
from proxy.telemetry.logs import LogTally, configure_logs
from proxy.telemetry.otlp import tracer_provider
from tests.bench.processes import start_server
from tests.bench.servers import API_KEY, POLICIES, SINKS, UPSTREAM, headgate, telemetry_variables
from tests.bench.workloads import COUNTER, build_body

VARIANTS = {
    "nothing": "",
    "metrics": "metrics",
    "log lines": "log",
    "1 % of the traces": "traces",
    "all three": "metrics log traces",
    **{f"all, sink {sink}": f"metrics log traces {sink}" for sink in SINKS},
}
WARM_UP, REQUESTS, CONNECTIONS = 160, 2400, 16
NO_PUSH_MS = "3600000"
"""The interval of exports of metrics, in milliseconds: what is done at times, however many requests there are, is left out."""


class Counting(Protocol):
    """What counts calls while `is_counting` is true."""

    is_counting: bool


class CallCount:
    """How many functions were called, by whether that was in the thread of the event loop."""

    def __init__(self) -> None:
        self.calls: Counter[bool] = Counter()
        self.is_counting = False
        self._main = threading.get_ident()

    def note(self, _frame: FrameType, event: str, _function: object) -> None:
        """Count one call; see `sys.setprofile`."""
        if self.is_counting and event in ("call", "c_call"):
            self.calls[threading.get_ident() == self._main] += 1


def ask(port: int, count: int, body: bytes, numbers: Iterator[int]) -> None:
    """Send requests, some at a time; the counter in a body is replaced by the next number.

    Raises RuntimeError for an answer that is not 200.
    """
    sys.setprofile(None)  # the client's own calls are not counted
    head = f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {API_KEY}\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CONNECTIONS)]
        answers = [stack.enter_context(each.makefile("rb")) for each in sockets]
        for _ in range(count // CONNECTIONS):
            for each in sockets:
                each.sendall(request.replace(COUNTER, b"%08d" % next(numbers)))
            for answer in answers:
                read(answer)


def read(answer: BinaryIO) -> None:
    """Read one answer, a body or a stream in chunks."""
    status, length = answer.readline(), None
    if b" 200 " not in status:
        raise RuntimeError(status.decode())
    while (line := answer.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    if length is not None:
        answer.read(length)
        return
    while size := int(answer.readline(), 16):
        answer.read(size + 2)
    answer.readline()


async def count_calls(config: Path, tally: LogTally, count: Counting, body: bytes, requests: int = REQUESTS) -> None:
    """Count what requests with this body take, after some that fill caches."""
    numbers = itertools.count()
    provider = tracer_provider(tally.losses)
    tracer = None if provider is None else provider.get_tracer("headgate")
    finished = FinishedRequests(tally.put_lines)
    async with running(read_config(config), tracer, logged=tally, finished=finished) as address:
        port = int(address.rpartition(":")[2])
        await asyncio.to_thread(ask, port, WARM_UP, body, numbers)
        count.is_counting = True
        await asyncio.to_thread(ask, port, requests, body, numbers)
        count.is_counting = False


def run_variant(config: str, level: str) -> None:
    """Count the calls of one variant, and print them: those of the event loop's thread, and those of others."""
    count, tally = CallCount(), LogTally()
    threading.setprofile(count.note)
    sys.setprofile(count.note)
    configure_logs(console=False, level=int(level), final=True, tally=tally)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(count_calls(Path(config), tally, count, build_body("json")))
    sys.setprofile(None)
    sys.stdout.write(f"{count.calls[True] / REQUESTS:.1f} {count.calls[False] / REQUESTS:.1f}\n")


async def compare() -> None:
    """Print a line for each variant."""
    with TemporaryDirectory(prefix="headgate-calls-") as name:
        async with start_server("upstream", UPSTREAM, Path(name)) as upstream:
            base = 0.0
            for variant, observed in VARIANTS.items():
                on_loop, elsewhere = await _measure(upstream.port, Path(name), observed.split())
                base = base or on_loop
                share = f"{100 * (on_loop / base - 1):+.1f} %"
                sys.stdout.write(f"{variant:20}{on_loop:8.1f} {share:>8}, in other threads {elsewhere:.1f}\n")


async def _measure(upstream: int, folder: Path, observed: list[str]) -> tuple[float, float]:
    """Return the calls of one variant, in a process of its own."""
    config = folder / f"{'_'.join(observed)}.toml"
    server = headgate(upstream, config, POLICIES, is_observed="metrics" in observed)
    sink = next((each for each in SINKS if each in observed), "")
    environment = {**server.environment, **(telemetry_variables(upstream, sink) if observed else {})}
    environment["OTEL_METRIC_EXPORT_INTERVAL"] = NO_PUSH_MS
    environment |= {f"OTEL_{each.upper()}_EXPORTER": "none" for each in ("traces", "metrics") if each not in observed}
    level = logging.INFO if "log" in observed else logging.ERROR
    command = [sys.executable, "-m", "tests.bench.calls", str(config), str(level)]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | environment, stdout=PIPE, stderr=DEVNULL)
    on_loop, elsewhere = (await process.communicate())[0].split()
    return float(on_loop), float(elsewhere)


if __name__ == "__main__":
    if sys.argv[1:]:
        run_variant(*sys.argv[1:])
    else:
        asyncio.run(compare())
