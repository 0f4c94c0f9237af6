"""The machine that the figures are from, and how much of it others took meanwhile."""

import os
import platform
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from tests.bench.processes import TICKS_PER_S

BUSY_CORES = 0.2  # others taking more than this, at whatever priority, bend the figures: caches are shared too


@dataclass(frozen=True, slots=True)
class Moment:
    """Processor time used so far on the whole machine, in seconds."""

    at: float
    normal_s: float
    nice_s: float

    @classmethod
    def now(cls) -> Self:
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        ticks = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
        used = dict(zip(names, ticks, strict=False))
        normal = sum(used[name] for name in ("user", "system", "irq", "softirq", "steal"))
        return cls(time.monotonic(), normal / TICKS_PER_S, used["nice"] / TICKS_PER_S)


def described() -> str:
    """Processor, cores, and the versions that matter."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def disturbance(began: Moment, ended: Moment, own_s: float) -> str:
    """How busy others kept the machine between two moments, in cores, and whether that bends the figures."""
    took = ended.at - began.at
    others = max(0.0, ended.normal_s - began.normal_s - own_s) / took
    nice = (ended.nice_s - began.nice_s) / took
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    told = f"load average at the end {load}; others took {others:.2f} cores, and {nice:.2f} at low priority"
    if others + nice > BUSY_CORES:
        told += (
            ". **The load was high: the machine does more when it is idle; of these figures trust the ratios by CPU**"
        )
    return told
