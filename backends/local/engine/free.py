"""How much memory is free for a process here: on the machine, or in the container it runs in.

Source: https://docs.kernel.org/filesystems/proc.html#meminfo, https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
"""

import os
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """What may still be taken without pushing others out; of a system that does not tell, half of what it has."""
    found = [size for size in (_machine(meminfo), _container(cgroup)) if size is not None]
    return min(found, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _machine(meminfo: Path) -> int | None:
    with suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, size = line.partition(":")
            if name == "MemAvailable":
                return int(size.split()[0]) * 1024
    return None


def _container(cgroup: Path) -> int | None:
    """None where there is no container, or one without a limit."""
    with suppress(OSError, ValueError):  # the limit may be the word "max"
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        return max(0, limit - int((cgroup / "memory.current").read_text(encoding="ascii")))
    return None
