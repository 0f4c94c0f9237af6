"""From threads into the loop."""

import asyncio
import threading

from backends.local.decoding.job import Job, Options, Token
from backends.local.scheduling.outbox import News, Outbox

JOB = Job(1, [1, 2], Options(1, frozenset()))


async def test_one_wake_up_brings_all_that_is_there():
    """However many wake it before the loop gets to it."""
    calls = []
    outbox = Outbox(lambda: calls.append(list(outbox.emptied())))
    for number in range(3):
        outbox.emit(JOB, Token(number))
        outbox.wake()
    outbox.ended(JOB, "stop", "")
    await asyncio.sleep(0)
    outbox.wake()
    outbox.emit_now(JOB, Token(3))
    outbox.ended_now(JOB, "failed", "why")
    await asyncio.sleep(0)

    assert calls == [
        [News(JOB, Token(0)), News(JOB, Token(1)), News(JOB, Token(2)), News(JOB, None, "stop")],
        [News(JOB, Token(3)), News(JOB, None, "failed", "why")],
    ]


async def test_nothing_is_lost_and_nothing_out_of_order():
    """With many threads at once, and a loop that empties meanwhile."""
    got, all_there = [], asyncio.Event()

    def full():
        got.extend(news.token.id for news in outbox.emptied())
        if len(got) == 4 * 5000:
            all_there.set()

    outbox = Outbox(full)

    def fill(first):
        for number in range(first, first + 5000):
            outbox.emit_now(JOB, Token(number))

    threads = [threading.Thread(target=fill, args=(first * 5000,)) for first in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(20):
        await all_there.wait()
    for thread in threads:
        thread.join()

    assert sorted(got) == list(range(20_000))
    assert all(
        [number for number in got if number // 5000 == part] == list(range(part * 5000, part * 5000 + 5000))
        for part in range(4)
    )
