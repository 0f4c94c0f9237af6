"""Makes tokens with CTranslate2 in threads of its own. Who asks sees ids in and ids out, and none of the library.

The seam: `started`, `generate`, `close`. Whatever else may run a model one day, a process of its own above all, stands
behind the same three.
Source: https://opennmt.net/CTranslate2/generation.html
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from backends.local.device import Placement, place
from backends.local.model import MIN_PROMPT_TOKENS, Model
from proxy.wire.errors import BackendError

# Among how many tokens top_p chooses: with all of them the library sorts the whole vocabulary at every step.
SAMPLED_FROM = 128
# Below these the library divides by nearly nothing; there is but one token left to choose.
MIN_TEMPERATURE = 1e-3
MIN_TOP_P = 1e-6
# How much the last generation weighs in the mean of how long they take.
LAST_ONE_WEIGHS = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """How one answer is made: at most `max_tokens` of them, none when one of `stop_ids` comes first."""

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0


class Generation:
    """The tokens of one answer. Iterate it once: each step brings all ids that are there, without the one that ends it.

    `finish` says at the end why there are no more: "stop" when the model came to its end, "length" at the limit.
    Raises BackendError when the model breaks down or is closed.
    """

    def __init__(self, stop_ids: frozenset[int]) -> None:
        self.finish: Literal["stop", "length"] | None = None
        self.cancelled = False
        self._stop_ids = stop_ids
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._over = False
        self._error: BaseException | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[int]:
        while not (ids := self._taken()):
            if self._error is not None:
                raise BackendError("The local model broke down.", code="local_model_failed") from self._error
            if self._over and self.finish is None:
                raise BackendError("The local model was stopped.", status=503, code="local_model_unavailable")
            if self._over:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return ids

    def step(self, result: Any) -> bool:
        """Called by the library in its own thread for every token; True stops the generation here."""
        try:
            return self._take(result.token_id, last=result.is_last)
        except BaseException:  # noqa: BLE001  an exception would take down whatever else the library is doing
            return True

    def end(self, error: BaseException | None) -> None:
        """Called in the loop's thread when the library is done with it, or never began."""
        self._over, self._error = True, error
        self._woken.set()

    def _take(self, token: int, *, last: bool) -> bool:
        if self.cancelled:
            return True
        if token in self._stop_ids:
            self.finish = "stop"
            return True
        if last:
            self.finish = "length"
        with self._lock:
            self._ids.append(token)
            first = len(self._ids) == 1
        if first:  # one wake-up for all that come before the loop gets to it
            self._loop.call_soon_threadsafe(self._woken.set)
        return False

    def _taken(self) -> list[int]:
        with self._lock:
            ids, self._ids = self._ids, []
        return ids


class Engine:
    """Runs as many generations at once as it has workers; as many as `max_waiting` more may wait for their turn."""

    def __init__(self, generator: Any, model: Model, *, workers: int, max_waiting: int) -> None:
        self._generator = generator
        self._vocabulary = model.vocabulary
        self._workers = workers
        self._max_waiting = max_waiting
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="headgate-local")
        self._live: dict[Future[None], Generation] = {}
        self._mean_s = 1.0
        self.running = True
        self.device: str = generator.device
        self.compute_type: str = generator.compute_type

    @classmethod
    async def started(cls, model: Model, placement: Placement, *, max_waiting: int) -> Self:
        """Load a model. Raises OSError when it cannot be loaded."""
        generator = await asyncio.to_thread(place, model, placement)
        return cls(generator, model, workers=placement.workers, max_waiting=max_waiting)

    @asynccontextmanager
    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncIterator[Generation]:
        """Begin an answer. Leaving the block ends it within one step, wherever it is, and frees its place.

        Raises BackendError when too many wait already, ValueError for a prompt that is none.
        """
        tokens = self._tokens(prompt)
        self._refuse_when_full()
        generation = Generation(options.stop_ids)
        future = self._submitted(generation, tokens, options)
        try:
            yield generation
        finally:
            generation.cancelled = True
            future.cancel()  # if it still waits for its turn

    async def close(self) -> None:
        """End what still runs and let go of the model."""
        self.running = False
        for future, generation in list(self._live.items()):
            generation.cancelled = True
            future.cancel()
        await asyncio.to_thread(self._threads.shutdown)
        # A generator that is still there when the interpreter ends has been seen to abort the process.
        self._generator = None

    def _tokens(self, prompt: Sequence[int]) -> list[str]:
        """The prompt as the library takes it. An id beyond its vocabulary would crash the process."""
        if len(prompt) < MIN_PROMPT_TOKENS or not all(0 <= number < len(self._vocabulary) for number in prompt):
            raise ValueError("a prompt has at least two tokens, all of the model's vocabulary")
        return [self._vocabulary[number] for number in prompt]

    def _refuse_when_full(self) -> None:
        waiting = len(self._live) - self._workers
        if waiting < self._max_waiting:
            return
        turn_s = max(1, math.ceil(self._mean_s * (waiting + 1) / self._workers))
        raise BackendError(
            f"{waiting} calls wait for this model already; the limit is {self._max_waiting}.",
            status=429, code="local_model_busy", headers={"Retry-After": str(turn_s)},
        )  # fmt: skip

    def _submitted(self, generation: Generation, tokens: list[str], options: Options) -> Future[None]:
        """The pool of threads is the queue: what finds no thread free waits in it, first come, first served."""
        loop = asyncio.get_running_loop()
        try:
            future = self._threads.submit(self._run, generation, tokens, options)
        except RuntimeError as error:
            raise BackendError("The local model is closing.", status=503, code="local_model_unavailable") from error
        self._live[future] = generation
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._forget, done))
        return future

    def _forget(self, future: Future[None]) -> None:
        generation = self._live.pop(future)
        generation.end(None if future.cancelled() else future.exception())

    def _run(self, generation: Generation, tokens: list[str], options: Options) -> None:
        if generation.cancelled:
            return
        began = time.monotonic()
        self._generator.generate_batch(
            [tokens], max_length=options.max_tokens, end_token=list(options.stop_ids), include_prompt_in_result=False,
            callback=generation.step, **_sampling(options, len(self._vocabulary)),
        )  # fmt: skip
        self._mean_s += LAST_ONE_WEIGHS * (time.monotonic() - began - self._mean_s)


def _sampling(options: Options, vocabulary: int) -> dict[str, Any]:
    if options.temperature < MIN_TEMPERATURE or options.top_p < MIN_TOP_P:
        return {"sampling_topk": 1}
    top_k = 0 if options.top_p == 1 else min(SAMPLED_FROM, vocabulary)
    return {"sampling_topk": top_k, "sampling_topp": options.top_p, "sampling_temperature": options.temperature}
