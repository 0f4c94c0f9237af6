"""Describes the machine of a measurement, and how much of it other processes used meanwhile."""

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from tests.bench.processes import TICKS_PER_S

BUSY_CORES = 0.2  # more than this used by other processes, at any priority, distorts the figures: caches are shared


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """Processor time that the whole machine has used since its start, in seconds."""

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


def describe_machine() -> str:
    """Return the processor, the number of cores, and the versions of Python, aiohttp and uvloop."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def describe_engine(device: str) -> str:
    """Return the version of the engine, and for "cuda" the GPU and its driver, which `nvidia-smi` names."""
    engine = f"CTranslate2 {version('ctranslate2')}"
    if device != "cuda":
        return engine
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return f"{engine} on {'; '.join(line.replace(', ', ', driver ') for line in lines)}"


def describe_disturbance(start: CpuSnapshot, end: CpuSnapshot, own_s: float) -> str:
    """Return how many cores other processes used between two snapshots, with a warning when it was too many."""
    elapsed_s = end.at - start.at
    others = max(0.0, end.normal_s - start.normal_s - own_s) / elapsed_s
    nice = (end.nice_s - start.nice_s) / elapsed_s
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    text = f"load average at the end {load}; other processes used {others:.2f} cores, and {nice:.2f} at low priority"
    if others + nice > BUSY_CORES:
        text += ". **The machine was busy: trust only the ratios by CPU; rates are higher on an idle machine**"
    return text
