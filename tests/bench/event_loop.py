"""Runs a coroutine on uvloop, the event loop of every process of the benchmark, until it ends or a signal arrives."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from signal import SIGINT, SIGTERM
from typing import Any

import uvloop


def run_until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` and return True when it finished, False when SIGTERM or SIGINT cancelled it."""

    async def cancel_on_signal() -> None:
        task = asyncio.current_task()
        assert task is not None
        for name in (SIGTERM, SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, suppress(asyncio.CancelledError):
        runner.run(cancel_on_signal())
        return True
    return False
