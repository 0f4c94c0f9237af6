"""The gate of the benchmark of local models: a real one, each model in a process of its own, and who knows its cost."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from backends.local.host.device import Placement
from tests.bench.processes import TICKS_PER_S
from tests.bench.works import KEY, Start

GATE = """
[server]
port = 0
[[caller]]
name = "bench"
key = "env:BENCH_KEY"
"""
# Room for the prefixes of all rounds: none is to be forgotten while something else is measured.
MODEL = """
[[backend]]
use = "local"
name = "{name}"
path = "{path}"
device = "{placement.device}"
compute_type = "{placement.compute_type}"
workers = {placement.workers}
prefix_cache_bytes = 4_294_967_296
[[route]]
model = "{name}"
backend = "{name}"
"""


def gate(folder: Path, models: Mapping[str, Path], placement: Placement) -> Start:
    """A gate that serves these folders by name."""
    config = folder / "gate.toml"
    tables = [
        MODEL.format(name=name, path=path.absolute().as_posix(), placement=placement) for name, path in models.items()
    ]
    config.write_text("".join([GATE, *tables]))
    return Start([sys.executable, "-m", "proxy", "serve", "--config", str(config)], {"BENCH_KEY": KEY})


def family_s(pid: int) -> float:
    """The processor time that a process and those that it started have used so far."""
    return sum(_used_s(each) for each in _family(pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for parent in _parents():
        if parent[1] == pid:
            yield from _family(parent[0])


def _parents() -> Iterator[tuple[int, int]]:
    """All processes, each with the one that started it."""
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(int(folder.name))
        if fields:
            yield int(folder.name), int(fields[1])


def _used_s(pid: int) -> float:
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if fields else 0.0


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, those behind the name; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
