"""What processes hold of a limit: never more than there is, whatever becomes of them, and all is given back."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import PrivateAttr

from policies import PolicyState
from policies.support.allowance import LEASE_S, PERIOD_S, CallPart
from policies.support.allowances import SLICE, Allowances
from proxy.stores import Grant, HoldRequest, StoreError
from proxy.stores.memory import MemoryStore
from tests.policies.limited import CountingStore, timed_store
from tests.raw import until

KEY, WINDOW_S = "counter", 1e9


class LossyStore(MemoryStore):
    """A store whose commands fail, after they were carried out or without it."""

    _fault: str = PrivateAttr(default="")

    def fail(self, fault: str) -> None:
        """`fault` is "down", "lost" (the answer), or empty."""
        self._fault = fault

    async def hold(self, key: str, asked: HoldRequest, **options: Any) -> Grant:
        if self._fault == "down":
            raise StoreError("it cannot be reached")
        grant = await super().hold(key, asked, **options)
        await asyncio.sleep(0)  # other calls go on meanwhile
        if self._fault == "lost":
            raise StoreError("the answer did not come")
        return grant


@dataclass
class Worker:
    """A process: what it holds, its calls that run, and what those have used that have ended."""

    allowances: Allowances
    running: list[CallPart] = field(default_factory=list)
    used: int = 0
    window_s: float = WINDOW_S

    async def call(self, amount: int) -> bool:
        """Make a call, as policies do; return whether it is granted."""
        held = self.allowances.held
        allowance = held.get(KEY) or self.allowances.add(KEY, KEY, self.window_s, "all", "")
        part = CallPart(allowance, amount)
        if amount <= allowance.free and self.allowances.clock() < allowance.ends_at:
            allowance.take(amount)
            part.granted, part.window = True, allowance.window
        else:
            await allowance.reserve(part)
        if part.granted:
            self.running.append(part)
        return part.granted

    async def end(self, number: int, used: int) -> None:
        await self.running.pop(number % len(self.running)).settle(used)
        self.used += used


def worker_of(store: MemoryStore, limit: int, clock: Callable[[], float], workers: int = 2) -> Worker:
    return Worker(Allowances(PolicyState(store, workers=workers), limit, clock=clock))


class Processes(RuleBasedStateMachine):
    """Several processes that share a limit."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [0.0]
        self.store = LossyStore()
        vars(self.store)["_clock"] = lambda: self.now[0]
        self.limit = 2_000
        self.loop = asyncio.new_event_loop()
        self.workers = [self._new() for _ in range(3)]
        self.exceeded = 0  # what calls have used beyond their reservations
        self.gone = 0  # what processes have used that are gone, and the store knows of

    def _new(self) -> Worker:
        return worker_of(self.store, self.limit, lambda: self.now[0])

    def _run(self, work: Any) -> Any:
        async def settled() -> Any:
            try:
                return await work
            finally:
                for _ in range(6):  # until what was begun beside the call is done
                    await asyncio.sleep(0)

        return self.loop.run_until_complete(settled())

    @rule(who=st.integers(0, 2), amounts=st.lists(st.integers(1, 60), min_size=1, max_size=30), used=st.integers(0, 90))
    def work(self, who: int, amounts: list[int], used: int) -> None:
        """Calls at once; every other one ends at once."""

        async def all_calls() -> list[Any]:
            return await asyncio.gather(*map(self.workers[who].call, amounts), return_exceptions=True)

        found = self._run(all_calls())
        assert all(isinstance(each, bool | StoreError) for each in found)
        for _ in range(sum(each is True for each in found) // 2):
            self._end(self.workers[who], 0, used)

    def _end(self, worker: Worker, number: int, used: int) -> None:
        part = worker.running[number % len(worker.running)]
        self.exceeded += max(0, used - part.amount)
        self._run(worker.end(number, used))

    @rule(who=st.integers(0, 2), number=st.integers(0, 30), used=st.integers(0, 90))
    def end(self, who: int, number: int, used: int) -> None:
        if self.workers[who].running:
            self._end(self.workers[who], number, used)

    @rule(who=st.integers(0, 2))
    def pass_a_period(self, who: int) -> None:
        self.now[0] += PERIOD_S / 3
        self._run(self._begin(self.workers[who]))

    async def _begin(self, worker: Worker) -> None:
        worker.allowances.begin_period()

    @rule(fault=st.sampled_from(["", "", "down", "lost"]))
    def change_store(self, fault: str) -> None:
        self.store.fail(fault)

    @precondition(lambda self: not self.store._fault)
    @rule()
    def outlive_a_lease(self) -> None:
        """Calls of processes that live keep what they have reserved."""
        for _ in range(4):
            self.now[0] += LEASE_S / 3
            for worker in self.workers:
                self._run(self._begin(worker))

    @precondition(lambda self: not self.store._fault)
    @rule(who=st.integers(0, 2))
    def kill(self, who: int) -> None:
        """What it held can be used by others once its lease has ended, also what it has used in its last moments."""
        worker = self.workers[who]
        known = worker.allowances.held.values()
        if all(allowance._repeated is None for allowance in known):  # else it is not known what the store knows
            self.gone += worker.used - sum(allowance.spent for allowance in known)
            self.workers[who] = self._new()

    @precondition(lambda self: not self.store._fault)
    @rule(who=st.integers(0, 2))
    def restart(self, who: int) -> None:
        """Let a process end its calls and give back everything."""
        worker = self.workers[who]
        while worker.running:
            self._end(worker, 0, worker.running[0].amount // 2)
        self._run(worker.allowances.close())
        self.gone += worker.used
        self.workers[who] = self._new()

    @invariant()
    def the_limit_is_not_exceeded(self) -> None:
        """Beyond what single calls have used more than they had reserved."""
        reserved = sum(part.amount for worker in self.workers for part in worker.running)
        used = self.gone + sum(worker.used for worker in self.workers)

        assert reserved + used <= self.limit + self.exceeded

    def teardown(self) -> None:
        """At the end all is given back but what was used."""
        try:
            self._give_all_back()
        finally:
            self.loop.close()

    def _give_all_back(self) -> None:
        self.store.fail("")
        for who in range(len(self.workers)):
            self.restart(who)
        self.now[0] += LEASE_S + 1
        if self.gone < self.limit:
            assert self._run(self._new().call(self.limit - self.gone))
        counter = self.store._records.get(KEY)
        assert self.gone == (
            0 if counter is None else counter.used - sum(hold.amount for hold in counter.holds.values())
        )


Processes.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestProcesses = Processes.TestCase


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 60), st.integers(1, 8), st.floats(0, 40)), max_size=30),
    st.integers(50, 2_000),
)
@settings(max_examples=60, deadline=None)
async def test_no_window_grants_more_than_its_limit(steps: Any, limit: int):
    """Two processes whose calls use at once what they take, while minutes pass."""
    now, granted = [0.0], Counter[int]()
    store = timed_store(now)
    workers = [Worker(Allowances(PolicyState(store), limit, clock=lambda: now[0]), window_s=60.0) for _ in range(2)]
    for who, calls, amount, passed_s in steps:
        await asyncio.gather(*(workers[who].call(amount) for _ in range(calls)))
        for part in workers[who].running:
            granted[part.window] += part.amount
            await part.settle(part.amount)
        workers[who].running.clear()
        now[0] += passed_s
        workers[who].allowances.begin_period()

    assert all(total <= limit for total in granted.values())


async def test_what_is_held_is_given_back_when_nothing_needs_it():
    """In the second period without a call; then nothing of the counter is known any more."""
    now = [0.0]
    store = timed_store(now)
    worker = worker_of(store, 10**6, lambda: now[0])
    for _ in range(50):
        assert await worker.call(10)
        await worker.end(0, 5)
    held = worker.allowances.held[KEY].free
    for _ in range(4):
        worker.allowances.begin_period()
        for allowance in [*worker.allowances.held.values()]:
            await allowance.written()

    assert held > 100
    assert worker.allowances.held == {}
    assert (await store.take(KEY, 0, limit=1, window_s=1)).used == 250


async def test_what_another_process_holds_is_refused_until_two_periods_have_passed():
    """It is a sixteenth at most of what was left when it was asked for; then every call of the limit is granted."""
    now, limit = [0.0], 10_000
    store = timed_store(now)
    one, other = (worker_of(store, limit, lambda: now[0]) for _ in range(2))
    for _ in range(1_000):
        assert await one.call(1)
        await one.end(0, 1)
    held = one.allowances.held[KEY].free
    passed = [await other.call(1) for _ in range(limit - 1_000)].count(True)
    for _ in range(2):
        one.allowances.begin_period()
        await one.allowances.held[KEY].written()
    granted_then = [await other.call(1) for _ in range(held + 1)].count(True)

    assert 0 < held <= limit // 16
    assert passed == limit - 1_000 - held
    assert granted_then == held


async def test_what_is_used_beyond_a_window_that_has_ended_counts_in_the_next():
    """Of a call that began in an earlier window."""
    now = [0.0]
    store = timed_store(now)
    worker = Worker(Allowances(PolicyState(store), 100, clock=lambda: now[0]), window_s=60.0)
    await worker.call(10)
    now[0] = 61.0
    await worker.call(20)
    await worker.end(0, 14)
    await worker.end(0, 20)

    assert (await store.take(KEY, 0, limit=1, window_s=1)).used == 24


async def test_what_is_used_beyond_the_last_window_begins_the_next():
    """If there was no call in between."""
    now = [0.0]
    store = timed_store(now)
    worker = Worker(Allowances(PolicyState(store), 100, clock=lambda: now[0]), window_s=60.0)
    await worker.call(10)
    now[0] = 61.0
    await worker.end(0, 14)

    assert (await store.take(KEY, 0, limit=1, window_s=1)).used == 4


async def test_many_counters_are_brought_up_to_date_in_slices():
    """So that no period asks a store for thousands of things at once."""
    allowances = Allowances(PolicyState(), 100)
    for number in range(SLICE + 1):
        allowances.add(number, str(number), 60.0, "", "")
    allowances.begin_period()
    first = len(allowances.held)
    await until(lambda: not allowances.held)

    assert first == 1
    await allowances.close()


async def test_a_call_that_others_outrun_waits_for_the_next_command():
    """It is refused only if nothing is left, not because smaller calls were faster."""
    now, store = [0.0], CountingStore()
    worker = worker_of(store, 10**6, lambda: now[0])
    for _ in range(50):
        assert await worker.call(10)
    free = worker.allowances.held[KEY].free
    store.gate.clear()
    commands = store.commands
    waiting = asyncio.create_task(worker.call(free + 10))
    await until(lambda: store.commands > commands)
    for _ in range(free // 10):
        assert await worker.call(10)
    store.gate.set()

    assert await waiting
    assert sum(part.amount for part in worker.running) == 500 + free // 10 * 10 + free + 10


@pytest.mark.parametrize("fault", ["lost", "down"])
async def test_what_was_used_is_counted_once_whatever_becomes_of_a_command(fault: str):
    """Also what calls use before it is known what became of it."""
    store = LossyStore()
    worker = worker_of(store, 100, lambda: 0.0)
    for _ in range(3):
        await worker.call(10)
    store.fail(fault)
    await worker.end(0, 4)
    await worker.end(0, 13)
    with pytest.raises(StoreError):
        await worker.call(40)
    store.fail("")
    reserved = await worker.call(74)  # 100, less what was used and the call that still runs, is not enough
    await worker.end(0, 5)
    await worker.allowances.close()

    assert not reserved
    assert (await store.take(KEY, 0, limit=1, window_s=1)).used == 22


async def test_a_call_that_was_cancelled_gets_no_fault():
    """Of those that wait for a command that fails."""
    store = LossyStore()
    worker = worker_of(store, 100, lambda: 0.0)
    store.fail("lost")
    waiting = [asyncio.create_task(worker.call(10)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting)

    assert waiting[0].cancelled()
    assert isinstance(waiting[1].exception(), StoreError)


async def test_calls_that_wait_end_with_the_process():
    """Nothing answers them any more."""
    store = CountingStore()
    worker = worker_of(store, 100, lambda: 0.0)
    store.gate.clear()
    waiting = [asyncio.create_task(worker.call(10)) for _ in range(2)]
    await until(lambda: store.commands == 1)
    waiting.append(asyncio.create_task(worker.call(10)))
    await asyncio.sleep(0)
    flight = worker.allowances.held[KEY]._flight
    assert flight is not None
    flight.cancel()
    await asyncio.wait(waiting)

    assert all(task.cancelled() for task in waiting)
