"""Ends what has gone astray, however busy the machine is; how quick things are is for the benchmarks to say."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 30


@contextmanager
def patience() -> Iterator[None]:
    """Raises TimeoutError in a block that takes many times as long as it should. For the main thread."""

    def end(*_: object) -> None:
        raise TimeoutError(f"no end after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
