"""Disks that are full: one that becomes so at a given file size, and a device that accepts nothing."""

import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes; a write beyond that is cut at the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def make_full_device(folder: Path) -> str:
    """Return the path of a device like /dev/full, on which no other test has a lock; /dev/full without the rights."""
    own = folder / "full"
    try:
        os.mknod(own, stat.S_IFCHR | 0o600, Path("/dev/full").stat().st_rdev)
        os.close(os.open(own, os.O_WRONLY))
    except OSError:
        return "/dev/full"
    return str(own)
