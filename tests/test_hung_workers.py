"""Workers that do not answer their supervisor, and a supervisor that does not read what they answer."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import uvloop

from proxy import supervisor
from proxy.config.build import read
from proxy.supervisor import Supervisor
from tests.raw import until
from tests.worker_gateways import LIMIT_S, write_config


def two_workers(folder: Path) -> Supervisor:
    config = write_config(folder)
    return Supervisor(read(config), [sys.executable, "-m", "proxy", "serve", "--config", str(config)], 2)


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    """It is killed when it has been silent for too long."""
    monkeypatch.setattr(supervisor, "HANG_S", 15.0)
    monkeypatch.setattr(supervisor, "PING_S", 0.05)
    running = two_workers(tmp_path)
    started = asyncio.Event()
    serving = asyncio.create_task(running.run(lambda _: started.set()))
    async with asyncio.timeout(LIMIT_S):
        await started.wait()
        monkeypatch.setattr(supervisor, "HANG_S", 0.5)
        process = running._workers[0].process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda: "worker.ended" in [line["event"] for line in logged])
        monkeypatch.setattr(supervisor, "HANG_S", 15.0)
    running._stop(signal.SIGTERM)

    assert await asyncio.wait_for(serving, LIMIT_S) == 0
    assert "worker.hung" in [line["event"] for line in logged]


def test_workers_survive_a_supervisor_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    """The pings count that found no answer, not the time. uvloop looks at the clock before it reads what has arrived."""

    async def stop_for_a_while() -> None:
        running, started = two_workers(tmp_path), asyncio.Event()
        workers = running._workers
        serving = asyncio.create_task(running.run(lambda _: started.set()))
        async with asyncio.timeout(LIMIT_S):
            await started.wait()
            processes = [worker.process for worker in workers]
            monkeypatch.setattr(supervisor, "HANG_S", 1.0)
            before = [worker.heard_at for worker in workers]
            await until(lambda: all(worker.heard_at > at for worker, at in zip(workers, before, strict=True)))
            time.sleep(2.0)  # noqa: ASYNC251  the supervisor has to be stopped
            before = [worker.heard_at for worker in workers]
            await until(lambda: all(worker.heard_at > at for worker, at in zip(workers, before, strict=True)))
        running._stop(signal.SIGTERM)

        assert [worker.process for worker in workers] == processes
        assert await asyncio.wait_for(serving, LIMIT_S) == 0

    monkeypatch.setattr(supervisor, "PING_S", 0.1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(stop_for_a_while())

    assert "worker.hung" not in [line["event"] for line in logged]
