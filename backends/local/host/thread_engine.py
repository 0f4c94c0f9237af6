"""An engine in this process: for tests, and where nothing may be started. Who crashes it crashes the gate."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from backends.local.decoding.job import Job
from backends.local.host.device import Placement, place
from backends.local.host.engine import Engine
from backends.local.scheduling.admission import Admission
from backends.local.scheduling.costs import calibrate
from backends.local.scheduling.prefix_cache import Prefixes
from backends.local.scheduling.scheduler import Scheduler
from proxy.wire.errors import BackendError


class InThread(Engine):
    """A scheduler in the loop of whoever asks; the model works in threads."""

    def __init__(self, admission: Admission, vocabulary_size: int) -> None:
        super().__init__(admission, vocabulary_size)
        self._scheduler: Scheduler | None = None

    @classmethod
    async def started(  # noqa: PLR0913  what one model has, by name
        cls, path: Path, vocabulary: Sequence[str], placement: Placement, admission: Admission, *,
        kv_bytes_per_token: int = 0, prefix_cache_bytes: int = 0, grammars: Any = None,
    ) -> Self:  # fmt: skip
        """Load a model and measure it. Raises OSError when it cannot be loaded."""
        generator = await asyncio.to_thread(place, path, vocabulary, placement)
        workers = generator.num_generators
        costs = await asyncio.to_thread(calibrate, generator, vocabulary, workers, kv_bytes_per_token)
        admission.calibrated(costs)
        engine = cls(admission, len(vocabulary))
        engine.device, engine.compute_type = generator.device, generator.compute_type
        prefixes = Prefixes(prefix_cache_bytes, kv_bytes_per_token)
        engine._scheduler = Scheduler(
            generator, vocabulary, costs, workers=workers, deliver=engine.take, prefixes=prefixes, grammars=grammars
        )
        return engine

    @property
    def running(self) -> bool:
        return self._scheduler is not None

    async def close(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        self.fail_all(BackendError("The local model was stopped.", status=503, code="local_model_unavailable"))
        if scheduler is not None:
            await scheduler.close()

    async def _begin(self, job: Job) -> None:
        if self._scheduler is None:
            raise BackendError("The local model is closing.", status=503, code="local_model_unavailable")
        self._scheduler.submit(job)

    def _cancel(self, job: Job) -> None:
        if self._scheduler is not None:
            self._scheduler.cancel(job.id)
