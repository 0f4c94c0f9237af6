"""Runs a coroutine on the loop that every process of the benchmark has, the gate included, until it is told to end."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from signal import SIGINT, SIGTERM
from typing import Any

import uvloop


def run(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end, or until SIGTERM or SIGINT. True when it ended by itself."""

    async def ending_by_signal() -> None:
        task = asyncio.current_task()
        assert task is not None
        for name in (SIGTERM, SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, suppress(asyncio.CancelledError):
        runner.run(ending_by_signal())
        return True
    return False
