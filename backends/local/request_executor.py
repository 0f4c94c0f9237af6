"""Decides where requests are prepared, because templates, tokens and schemas may take long and must not block others.

A short request of plain text is prepared at once, which is faster than handing it to a thread. Other short requests are
prepared in a few threads, long ones one after the other in a thread of their own. These threads serve nothing else, so
that neither names are resolved nor bodies read behind them. Teams take turns, each request has a budget of work, and
the work of a client that has disconnected is dropped from the queue, or ends at its next check.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from backends.local.scheduling.admission import busy_error
from backends.local.scheduling.fairness import TeamRotation, queue_limit
from backends.local.work_budget import REQUEST_UNITS, WorkBudget

T = TypeVar("T")

# A plain body of this size is prepared in a millisecond or two.
MAX_INLINE_BYTES = 4_096
# A longer body makes a long request.
MAX_SHORT_BYTES = 32_768
# How many short requests may wait, whatever the limit for long ones: most take milliseconds.
SHORT_THREADS, MAX_SHORT_WAITING = 2, 256
# The estimated time of one request, for Retry-After.
LONG_REQUEST_S, SHORT_REQUEST_S = 1.0, 0.01


class RequestExecutor:
    """Runs the preparation of requests. At most `max_waiting` long requests wait for the one that is prepared.

    A quarter more may wait for teams that have no request here. `units` is the budget of work of each request.
    """

    def __init__(self, max_waiting: int, units: int = REQUEST_UNITS) -> None:
        self._units = units
        self._short = _Lane("short", SHORT_THREADS, max(max_waiting, MAX_SHORT_WAITING), SHORT_REQUEST_S)
        self._long = _Lane("long", 1, max_waiting, LONG_REQUEST_S)

    async def run(self, prepare: Callable[[], T], size_bytes: int, *, team: str, plain: bool) -> T:
        """Return what `prepare` returns, or raise what it raises. Raises BackendError when too many requests wait.

        `plain`: whether the request contains only text, so that its size bounds the time that it takes.
        """
        budget = WorkBudget(self._units)

        def work() -> T:
            with budget:
                return prepare()

        if plain and size_bytes <= MAX_INLINE_BYTES:
            return work()
        lane = self._short if size_bytes <= MAX_SHORT_BYTES else self._long
        result: T = await lane.run(_QueuedRequest(team, budget, work, asyncio.get_running_loop().create_future()))
        return result

    def close(self) -> None:
        """Prepare no further request; those that wait are cancelled."""
        self._short.close()
        self._long.close()


@dataclass(frozen=True, slots=True, eq=False)
class _QueuedRequest:
    team: str
    budget: WorkBudget
    work: Callable[[], Any]
    result: asyncio.Future[Any]


class _Lane:
    """A queue of requests and the threads that prepare them. Its methods are called in the loop's thread."""

    def __init__(self, kind: str, threads: int, max_waiting: int, request_s: float) -> None:
        self._kind = kind
        self._free_threads = threads
        self._max_waiting = max_waiting
        self._request_s = request_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"headgate-{kind}-request")
        self._waiting: list[_QueuedRequest] = []
        self._running: list[_QueuedRequest] = []
        self._rotation = TeamRotation()

    async def run(self, request: _QueuedRequest) -> Any:
        self._check_room(request.team)
        self._waiting.append(request)
        self._start_next()
        try:
            return await request.result
        except asyncio.CancelledError:
            request.budget.cancel()
            if request in self._waiting:
                self._waiting.remove(request)
            raise

    def close(self) -> None:
        for request in self._waiting:
            request.result.cancel()
        self._waiting.clear()
        self._threads.shutdown(wait=False)

    def _check_room(self, team: str) -> None:
        waiting = len(self._waiting)
        holds_nothing = all(request.team != team for request in (*self._waiting, *self._running))
        limit = queue_limit(self._max_waiting, holds_nothing=holds_nothing)
        if not self._free_threads and waiting >= limit:
            message = f"{waiting} {self._kind} requests already wait to be prepared; the limit is {limit}."
            raise busy_error(message, waiting * self._request_s)

    def _start_next(self) -> None:
        while self._free_threads and self._waiting:
            request = self._rotation.order(self._waiting, lambda each: each.team)[0]
            self._rotation.record_turn(request.team)
            self._waiting.remove(request)
            self._running.append(request)
            self._free_threads -= 1
            # A thread cannot be stopped, so a request keeps its place until its work has ended.
            done = asyncio.get_running_loop().run_in_executor(self._threads, request.work)
            done.add_done_callback(functools.partial(self._finish, request))

    def _finish(self, request: _QueuedRequest, done: asyncio.Future[Any]) -> None:
        self._running.remove(request)
        self._free_threads += 1
        error = done.exception()
        if not request.result.done():
            if error is None:
                request.result.set_result(done.result())
            else:
                request.result.set_exception(error)
        self._start_next()
