"""Who is let in: as many as may wait, as fit in memory, and as will have their turn in time. Figures only, no I/O.

Who is not is told when to come back: when so much of what runs and waits will have been done, by what it was measured
to cost, and by how much longer it takes in fact: prompts are longer than what was measured, machines are shared.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from backends.local.decoding.job import Job, Step
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.estimates import MeanLength
from proxy.wire.errors import BackendError, RequestError

LONGEST_WAIT_S = 600
# How much one answer weighs in how much longer they take than they should, and what is believed of it at most.
ONE_WEIGHS, MOST_TIMES = 0.1, 20.0
# Before a model has been measured.
UNKNOWN = Costs(0.02, 0.1, 0.0005, 0, 1)


class Busy(BackendError):
    """Source: https://platform.openai.com/docs/guides/rate-limits (429: which limit it was is told by the type)."""

    type: ClassVar[str] = "requests"


@dataclass(slots=True)
class Place:
    """What is known of a job that was let in."""

    job: Job
    begun: bool = False
    begun_at: float = 0.0
    cached: int = 0
    made: int = 0

    @property
    def tokens(self) -> int:
        """For how many it may need memory."""
        return len(self.job.prompt) + self.job.options.max_tokens

    @property
    def alone(self) -> bool:
        """Whether it will share no batch."""
        return self.job.options.alone


class Admission:
    """The places of one model. `kv_bytes`: what its answers may take of memory while they are made; None: no limit.
    What a token of them takes is known before the model is measured; 0: it is not."""

    def __init__(
        self, max_waiting: int, workers: int, kv_bytes: int | None, max_wait_s: float,
        *, kv_bytes_per_token: int = 0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._max_waiting = max_waiting
        self._workers = workers
        self._kv_bytes = kv_bytes
        self._max_wait_s = max_wait_s
        self._costs = replace(UNKNOWN, kv_bytes_per_token=kv_bytes_per_token)
        self._places: dict[int, Place] = {}
        self._length = MeanLength()
        self._times = 1.0
        self._clock = clock

    def calibrated(self, costs: Costs) -> None:
        """The model has been measured."""
        self._costs = costs
        self._workers = costs.workers

    @contextmanager
    def admitted(self, job: Job) -> Iterator[None]:
        """A place for a job, until the block is left. Raises BackendError with Retry-After, or RequestError."""
        place = Place(job)
        self._refuse_what_never_fits(place)
        self._refuse_when_full()
        self._refuse_without_memory(place)
        self._refuse_long_waits()
        self._places[job.id] = place
        try:
            yield
        finally:
            del self._places[job.id]

    def see(self, step: Step) -> None:
        """What becomes of jobs."""
        place = self._places.get(step.job)
        if place is None:
            return
        if not place.begun:
            place.begun, place.begun_at, place.cached = True, self._clock(), step.cached_tokens or 0
        place.made += len(step.tokens)
        if step.finish in ("stop", "length"):
            self._length.see(place.made, cut=step.finish == "length")
            self._learn(place)

    @property
    def waiting(self) -> int:
        """How many wait for a worker, as far as can be seen from here."""
        begun = sum(place.begun for place in self._places.values())
        return max(0, len(self._places) - max(begun, self._workers))

    @property
    def wait_s(self) -> float:
        """How long one more would wait for its turn."""
        # Whoever waits shows that no worker is free; how many batches those that have begun are in cannot be seen here.
        return self._work_s() / self._workers if self.waiting else 0.0

    def _work_s(self) -> float:
        """How long one worker would have to do with what is here."""
        costs, places = self._costs, self._places.values()
        running = [self._left(place) for place in places if place.begun]
        waiting = [place for place in places if not place.begun]
        together = sum(not place.alone for place in waiting)
        rows = max(1, min(costs.max_rows, together // self._workers))
        work_s = sum(running) * self._row_s(max(1, len(running) / self._workers))
        for place in waiting:
            read_s = len(place.job.prompt) * costs.prefill_s_per_token
            work_s += read_s + self._left(place) * self._row_s(1 if place.alone else rows)
        return work_s * self._times

    def _learn(self, place: Place) -> None:
        """How long it took in fact."""
        rows = max(1.0, sum(other.begun for other in self._places.values()) / self._workers)
        read_s = (len(place.job.prompt) - place.cached) * self._costs.prefill_s_per_token
        thought_s = read_s + place.made * self._costs.rows_step_s(rows)
        if thought_s > 0:
            times = (self._clock() - place.begun_at) / thought_s
            self._times += ONE_WEIGHS * (min(times, MOST_TIMES) - self._times)

    def _row_s(self, rows: float) -> float:
        """What one token of one row costs in a batch of so many."""
        return self._costs.rows_step_s(rows) / rows

    def _left(self, place: Place) -> float:
        """How many tokens an answer will yet have."""
        return self._length.left(place.made, place.job.options.max_tokens - place.made)

    def _refuse_what_never_fits(self, place: Place) -> None:
        most = self._most_tokens
        if most is not None and place.tokens > most:
            raise RequestError(
                f"The input and max_output_tokens come to {place.tokens} tokens; this model has memory for {most}.",
                code="local_model_memory", param="max_output_tokens",
            )  # fmt: skip

    def _refuse_when_full(self) -> None:
        waiting = self.waiting
        if len(self._places) >= self._workers + self._max_waiting and waiting >= self._max_waiting:
            raise busy(f"{waiting} calls wait for this model already; the limit is {self._max_waiting}.", self.wait_s)

    def _refuse_without_memory(self, place: Place) -> None:
        most, held = self._most_tokens, sum(other.tokens for other in self._places.values())
        if most is not None and held + place.tokens > most:
            raise busy("The memory for answers of this model is taken.", self._work_s() / self._workers)

    def _refuse_long_waits(self) -> None:
        wait_s = self.wait_s
        if wait_s > self._max_wait_s:
            raise busy(
                f"An answer would begin in about {wait_s:.0f} s; the limit is {self._max_wait_s:g} s.",
                wait_s - self._max_wait_s,
            )

    @property
    def _most_tokens(self) -> int | None:
        """For how many tokens there is memory; None: nobody counts."""
        per_token = self._costs.kv_bytes_per_token
        return self._kv_bytes // per_token if self._kv_bytes is not None and per_token else None


def busy(message: str, again_in_s: float) -> Busy:
    """A refusal of somebody who may come back after a while."""
    after = str(max(1, min(LONGEST_WAIT_S, math.ceil(again_in_s))))
    return Busy(message, status=429, code="local_model_busy", headers={"Retry-After": after})
