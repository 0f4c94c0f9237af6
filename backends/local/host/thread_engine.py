"""An engine in this process, for tests and where no process may be started. A crash of the library ends the gateway."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.local.decoding.job import DecodingStep, Job
from backends.local.host.device import Placement, load_generator
from backends.local.host.engine import Engine
from backends.local.host.gpu import measure_engine
from backends.local.scheduling.admission import JobAdmission
from backends.local.scheduling.prefix_cache import PrefixCache
from backends.local.scheduling.scheduler import Scheduler
from proxy.wire.errors import BackendError


class ThreadEngine(Engine):
    """Runs a scheduler in the caller's loop and the model in threads."""

    def __init__(self, admission: JobAdmission, vocabulary_size: int) -> None:
        super().__init__(admission, vocabulary_size)
        self._loop = asyncio.get_running_loop()
        self._scheduler: Scheduler | None = None

    @classmethod
    async def start(  # noqa: PLR0913  the parts of one model, by name
        cls, path: Path, vocabulary: Sequence[str], placement: Placement, admission: JobAdmission, *,
        kv_bytes_per_token: int = 0, prefix_cache_bytes: int = 0, grammars: Any = None,
    ) -> "ThreadEngine":  # fmt: skip
        """Load a model and measure its costs. Raises OSError when it cannot be loaded."""
        generator = await asyncio.to_thread(load_generator, path, vocabulary, placement)
        costs = await asyncio.to_thread(measure_engine, generator, vocabulary, kv_bytes_per_token, prefix_cache_bytes)
        admission.set_costs(costs)
        engine = cls(admission, len(vocabulary))
        engine.device, engine.compute_type = generator.device, generator.compute_type
        prefixes = PrefixCache(prefix_cache_bytes, costs.kv_bytes_per_token)
        engine._scheduler = Scheduler(
            generator,
            vocabulary,
            costs,
            workers=costs.workers,
            deliver=engine._receive_soon,
            prefixes=prefixes,
            grammars=grammars,
        )
        return engine

    @property
    def is_running(self) -> bool:
        return self._scheduler is not None

    async def close(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        self.fail_all(_closed())
        if scheduler is not None:
            await scheduler.close()

    def _receive_soon(self, steps: Sequence[DecodingStep]) -> None:
        """Receive steps, from any thread."""
        self._loop.call_soon_threadsafe(self.receive, steps)

    async def _submit(self, job: Job) -> None:
        if self._scheduler is None:
            raise _closed()
        self._scheduler.submit(job)

    def _cancel(self, job: Job) -> None:
        if self._scheduler is not None:
            self._scheduler.cancel(job.id)

    def _deliver_at_once(self, job: Job) -> None:
        if self._scheduler is not None:
            self._scheduler.deliver_at_once(job.id)


def _closed() -> BackendError:
    return BackendError(
        "The local model was stopped.", status=503, code="local_model_unavailable", source="gateway", retryable=True
    )
