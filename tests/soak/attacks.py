"""The attacks, and how each is run: what the gateway is started with, and what happens while the polite caller is served.

An attack returns counted outcomes. One that begins with BROKEN is a broken promise.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import orjson

from tests.bench.processes import ROOT
from tests.soak import operators
from tests.soak.attacker import ALL_CLIENTS
from tests.soak.gateway import ENTRANCES, Gateway, Options
from tests.soak.upstreams import BEHAVIOURS
from tests.soak.wire import Outcomes

READY_TIMEOUT_S, END_TIMEOUT_S = 60, 30
CONNECTION_FILES = 1024

Disturbance = Callable[[Gateway, float], Awaitable[Outcomes]]
Preparation = Callable[[Path], AbstractContextManager[tuple[Options, Disturbance]]]


async def disturb_nothing(_gateway: Gateway, seconds: float) -> Outcomes:
    await asyncio.sleep(seconds)
    return Counter()


def prepare_nothing(_folder: Path) -> AbstractContextManager[tuple[Options, Disturbance]]:
    return nullcontext((Options(), disturb_nothing))


def prepare_few_files(_folder: Path) -> AbstractContextManager[tuple[Options, Disturbance]]:
    return nullcontext((Options(max_files=CONNECTION_FILES), disturb_nothing))


def prepare_entrances(_folder: Path) -> AbstractContextManager[tuple[Options, Disturbance]]:
    return nullcontext((Options(more=ENTRANCES), disturb_nothing))


def prepare_state_in_memory(_folder: Path) -> AbstractContextManager[tuple[Options, Disturbance]]:
    return nullcontext((Options(state='use = "memory"'), disturb_nothing))


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack. `attacker` is the name of the attack in `attacker.py`, "" for none."""

    name: str
    kind: str
    attacker: str = ""
    prepare: Preparation = prepare_nothing


PREPARED: dict[str, Preparation] = {
    "connections": prepare_few_files,
    "issued_keys": prepare_entrances,
    "forged_tokens": prepare_entrances,
    "kept_memory": prepare_state_in_memory,
    "kept_redis": operators.prepare_state_in_redis,
}
NOT_HOSTILE = ("hello", "medium_json", "file_list", "flaky")
"""Behaviours of the upstream that hostile clients use."""
ATTACKS = (
    Attack("none", "baseline"),
    *(Attack(name, "client", name, PREPARED.get(name, prepare_nothing)) for name in ALL_CLIENTS),
    *(Attack(name, "upstream", name) for name in BEHAVIOURS if name not in NOT_HOSTILE),
    Attack("scrapers", "operator", "", operators.prepare_scrapers),
    Attack("stderr_unread", "operator", "unknown_keys", operators.prepare_unread_stderr),
    Attack("audit_disk_full", "operator", "", operators.prepare_full_audit_disk),
    Attack("redis_paused", "operator", "", operators.prepare_paused_redis),
    Attack("redis_killed", "operator", "", operators.prepare_killed_redis),
)


class Attacker:
    """The attacking process of one attack; none for an attack without one."""

    def __init__(self, process: Process | None, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    async def wait_until_ready(self) -> None:
        """Wait until its bodies are built."""
        if self._process is not None:
            assert self._process.stdout is not None
            await asyncio.wait_for(self._process.stdout.readline(), READY_TIMEOUT_S)

    async def begin(self, port: int, hostile_port: int) -> Outcomes:
        """Attack the gateway on a port, with the help of the hostile upstream, and wait for the end."""
        if self._process is None:
            return Counter()
        try:
            sent = self._process.communicate(b"%d %d\n" % (port, hostile_port))
            printed, _ = await asyncio.wait_for(sent, self._seconds + END_TIMEOUT_S)
        except TimeoutError:
            return Counter({"the attacker did not end": 1})
        return Counter(orjson.loads(printed))


@asynccontextmanager
async def start_attacker(attack: Attack, seconds: float) -> AsyncIterator[Attacker]:
    """Start the attacking process, which builds its bodies while the gateway is started."""
    if not attack.attacker:
        yield Attacker(None, seconds)
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.soak.attacker", attack.attacker, str(seconds),
        cwd=ROOT, stdin=PIPE, stdout=PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield Attacker(process, seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
