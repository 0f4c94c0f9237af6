"""`python -m tests.soak`: hostile callers, upstreams and operators beside one polite caller, whose traffic is measured.

Each attack gets a gateway of its own, a real process. README.md in this folder explains the table. The exit status is 1
when a promise was broken.
"""

import argparse
import asyncio
import os
import shlex
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.event_loop import run_until_signal
from tests.bench.machine import describe_machine
from tests.bench.processes import start_server
from tests.bench.servers import ServerCommand
from tests.soak.attacks import ATTACKS, Attack, start_attacker
from tests.soak.gateway import Gateway, start_gateway
from tests.soak.polite import PoliteCaller
from tests.soak.report import Row, Thresholds, find_faults, render, render_outcomes
from tests.soak.restarts import restart

RESTARTS = "restarts"
QUIET_SHARE, SHORTEST_QUIET_S = 0.4, 2.0
SETTLE_S = 1.0  # until the gateway has noticed that the polite connections are closed
LEAD_S = 0.2  # polite traffic runs before the attack begins


class Soak:
    """Runs attacks between two upstream processes."""

    def __init__(self, folder: Path, polite_port: int, hostile_port: int, options: argparse.Namespace) -> None:
        self._folder = folder
        self._ports = polite_port, hostile_port
        self._seconds: float = options.seconds
        self._tries: int = options.tries
        self._allowed = thresholds(options)

    async def run(self, attack: Attack, measured: asyncio.Event) -> Row:
        """Run one attack on a gateway of its own. `measured` is set when only the gateway's end is waited for."""
        row = Row(attack.name)
        folder = self._folder / attack.name
        folder.mkdir()
        with attack.prepare(folder) as (options, disturb):
            async with (
                start_attacker(attack, self._seconds) as attacker,
                start_gateway(options, folder, *self._ports) as gateway,
            ):
                await attacker.wait_until_ready()
                async with PoliteCaller(gateway.pid, gateway.port, self._ports[0]) as polite:
                    row.quiet = await polite.measure(max(SHORTEST_QUIET_S, QUIET_SHARE * self._seconds))
                await asyncio.sleep(SETTLE_S)
                row.before = await gateway.read()
                gateway.reset_peak()
                async with PoliteCaller(gateway.pid, gateway.port, self._ports[0]) as polite:
                    measuring = asyncio.create_task(polite.measure(self._seconds + 2 * LEAD_S))
                    await asyncio.sleep(LEAD_S)
                    seen, done = await asyncio.gather(
                        attacker.begin(gateway.port, self._ports[1]), disturb(gateway, self._seconds)
                    )
                    row.outcomes = Counter(seen) + Counter(done)
                    row.attacked = await measuring
                measured.set()
                await self._end(gateway, row)
        return row

    async def _end(self, gateway: Gateway, row: Row) -> None:
        """Read the gateway after the attack, and stop it."""
        if not gateway.is_running:
            row.faults.append("the gateway exited")
            return
        row.peak_mb = gateway.peak_mb()
        assert row.before is not None
        try:
            row.after = await gateway.read_when_back(self._allowed.after(row.before))
        except TimeoutError:
            row.faults.append("the gateway does not react")
        gateway.terminate()
        row.exit_status = await gateway.wait()
        row.stop_s = gateway.stop_s

    async def run_restarts(self) -> Row:
        row = Row(RESTARTS)
        for number in range(self._tries):
            folder = self._folder / f"{RESTARTS}-{number}"
            folder.mkdir()
            before = len(row.attacked.lost)
            took_s = await restart(folder, *self._ports, row.attacked)
            row.outcomes["requests lost" if len(row.attacked.lost) > before else "no request lost"] += 1
            row.exit_status = None if took_s is None else row.exit_status
            row.stop_s = max(row.stop_s, took_s or 0.0)
        return row


async def soak(options: argparse.Namespace, rows: list[Row]) -> None:
    """Run the chosen attacks and print each row as soon as it is known."""
    with TemporaryDirectory(prefix="headgate-soak-") as name:
        folder = Path(name)
        upstreams = [
            ServerCommand([sys.executable, "-m", f"tests.soak.{kind}"], {}) for kind in ("polite_upstream", "upstreams")
        ]
        async with (
            start_server("polite", upstreams[0], folder) as polite,
            start_server("hostile", upstreams[1], folder) as hostile,
        ):
            runner = Soak(folder, polite.port, hostile.port, options)
            ending: asyncio.Task[None] | None = None
            for attack in choose(options.only):
                measured = asyncio.Event()
                running = runner.run_restarts() if attack is None else runner.run(attack, measured)
                task = asyncio.create_task(_add_row(running, rows, options, ending))
                await _first_of(task, measured)
                ending = task
            if ending is not None:
                await ending


async def _add_row(
    running: Coroutine[Any, Any, Row], rows: list[Row], options: argparse.Namespace, before: asyncio.Task[None] | None
) -> None:
    """Add the row of an attack behind the one before, and print it."""
    row = await running
    if before is not None:
        await before
    rows.append(row)
    faults = find_faults(row, thresholds(options))
    _print(f"{render_outcomes(row)}. {'BROKEN: ' + '; '.join(faults) if faults else 'Kept.'}")


async def _first_of(task: asyncio.Task[None], measured: asyncio.Event) -> None:
    """Wait until a row is measured; the next attack begins while its gateway comes to rest. Raises what ended the task."""
    waiting = asyncio.create_task(measured.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task


def choose(only: Sequence[str] | None) -> list[Attack | None]:
    """Return the chosen attacks, by name or by kind; None stands for the restarts."""
    chosen: list[Attack | None] = [a for a in ATTACKS if not only or a.name in only or a.kind in only]
    return [*chosen, None] if not only or RESTARTS in only or "operator" in only else chosen


def thresholds(options: argparse.Namespace) -> Thresholds:
    return Thresholds(
        options.added_ms, options.base_mb, options.left_mb, options.spare_files, options.spare_tasks, options.stop_s
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Attacks beside one polite caller.")
    names = [*dict.fromkeys([attack.name for attack in ATTACKS] + [attack.kind for attack in ATTACKS]), RESTARTS]
    parser.add_argument("--seconds", type=float, default=5, help="for each attack (default 5)")
    parser.add_argument("--only", action="append", choices=names, help="attacks or kinds to run; may be repeated")
    parser.add_argument("--tries", type=int, default=20, help="restarts under load (default 20)")
    parser.add_argument("--added-ms", type=float, default=300, help="p99 that an attack may add (default 300)")
    parser.add_argument("--base-mb", type=float, default=400, help="memory beside memory_bytes (default 400)")
    parser.add_argument("--left-mb", type=float, default=200, help="memory that may be left afterwards (default 200)")
    parser.add_argument("--spare-files", type=int, default=10, help="descriptors that may be left (default 10)")
    parser.add_argument("--spare-tasks", type=int, default=5, help="tasks that may be left (default 5)")
    parser.add_argument("--stop-s", type=float, default=10, help="how long SIGTERM may take (default 10)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    finished = run_until_signal(soak(options, rows))
    command = shlex.join(["python", "-m", "tests.soak", *sys.argv[1:]])
    _print(f"\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`, {describe_machine()}.")
    _print(f"Load average {load_before:.1f} at the start and {os.getloadavg()[0]:.1f} at the end.\n")
    for line in render(rows, thresholds(options)):
        _print(line)
    if not finished:
        sys.exit(130)
    sys.exit(1 if any(find_faults(row, thresholds(options)) for row in rows) else 0)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
