"""Tests of the queue between threads and the loop."""

import asyncio
import threading

from backends.local.decoding.job import DecodingOptions, Job, Token
from backends.local.scheduling.outbox import Outbox

JOB = Job(1, [1, 2], DecodingOptions(1, frozenset()))


async def test_one_wake_up_drains_all_pending_events():
    """Also when several threads wake the loop before it drains them."""
    calls = []
    outbox = Outbox(lambda: calls.append(list(outbox.drain())))
    for number in range(3):
        outbox.emit(JOB, Token(number))
        outbox.wake()
    outbox.end(JOB, "stop", "")
    await asyncio.sleep(0)
    outbox.wake()
    outbox.emit_now(JOB, Token(3))
    outbox.end_now(JOB, "failed", "why")
    await asyncio.sleep(0)

    assert calls == [
        [(JOB, Token(0), None, ""), (JOB, Token(1), None, ""), (JOB, Token(2), None, ""), (JOB, None, "stop", "")],
        [(JOB, Token(3), None, ""), (JOB, None, "failed", "why")],
    ]


async def test_events_from_many_threads_are_complete_and_in_order():
    """While the loop drains them."""
    received, complete = [], asyncio.Event()

    def on_events():
        received.extend(token.id for _, token, _, _ in outbox.drain())
        if len(received) == 4 * 5000:
            complete.set()

    outbox = Outbox(on_events)

    def fill(first):
        for number in range(first, first + 5000):
            outbox.emit_now(JOB, Token(number))

    threads = [threading.Thread(target=fill, args=(first * 5000,)) for first in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(20):
        await complete.wait()
    for thread in threads:
        thread.join()

    assert sorted(received) == list(range(20_000))
    assert all(
        [number for number in received if number // 5000 == part] == list(range(part * 5000, part * 5000 + 5000))
        for part in range(4)
    )
