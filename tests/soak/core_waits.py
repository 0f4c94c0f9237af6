"""How long the gateway waited for a core: on a busy machine that is most of a latency, and no cost of the gateway's.

Linux counts it for each thread. It is sampled while the polite caller runs, so that the wait within any period is known.
"""

import asyncio
import time
from bisect import bisect
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.01


class CoreWaits:
    """Samples how long the main thread of a process, which runs its event loop, was ready but had no core."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._at_s: list[float] = []
        self._waited_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._sample()
        self._sampling = asyncio.create_task(self._keep_sampling())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampling.cancel()

    def between(self, start_s: float, end_s: float) -> float:
        """Return how long the thread waited between two moments."""
        self._sample()
        return self._until(end_s) - self._until(start_s)

    def _until(self, moment_s: float) -> float:
        """Return the wait up to a moment, interpolated between two samples."""
        after = min(max(1, bisect(self._at_s, moment_s)), len(self._at_s) - 1)
        (start_s, end_s), (first, last) = self._at_s[after - 1 : after + 1], self._waited_s[after - 1 : after + 1]
        share = (moment_s - start_s) / max(end_s - start_s, 1e-9)
        return first + min(max(share, 0.0), 1.0) * (last - first)

    async def _keep_sampling(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._sample()

    def _sample(self) -> None:
        with suppress(OSError):  # the process has ended
            waited_ns = int(self._path.read_text().split()[1])
            self._at_s.append(time.monotonic())
            self._waited_s.append(waited_ns / 1e9)
