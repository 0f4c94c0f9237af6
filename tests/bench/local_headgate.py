"""The Headgate under test in the benchmark of local models, and the processor time of a tree of processes."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from backends.local.host.device import Placement
from tests.bench.processes import TICKS_PER_S
from tests.bench.servers import API_KEY, ServerCommand

SERVER = """
[server]
port = 0
[[caller]]
name = "bench"
key = "env:BENCH_KEY"
"""
# prefix_cache_bytes holds the prefixes of all rounds, so that none is evicted while something else is measured.
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


def headgate_with_models(folder: Path, models: Mapping[str, Path], placement: Placement) -> ServerCommand:
    """Return the command of a Headgate that serves these model folders under these names."""
    config = folder / "headgate.toml"
    tables = [
        MODEL.format(name=name, path=path.absolute().as_posix(), placement=placement) for name, path in models.items()
    ]
    config.write_text("".join([SERVER, *tables]))
    return ServerCommand([sys.executable, "-m", "proxy", "serve", "--config", str(config)], {"BENCH_KEY": API_KEY})


def process_tree_cpu_s(pid: int) -> float:
    """Return the processor time that a process and its descendants have used so far."""
    return sum(_cpu_s(each) for each in _process_tree(pid))


def _process_tree(pid: int) -> Iterator[int]:
    yield pid
    for child, parent in _processes_with_parents():
        if parent == pid:
            yield from _process_tree(child)


def _processes_with_parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat_fields(int(folder.name))
        if fields:
            yield int(folder.name), int(fields[1])


def _cpu_s(pid: int) -> float:
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if fields else 0.0


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the process name; none when the process has exited."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
