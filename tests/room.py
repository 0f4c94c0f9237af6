"""A disk that has room for so many bytes of a file and no more."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def room_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size`: of what is written across it, the first part is taken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
