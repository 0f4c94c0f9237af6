"""`python -m tests.bench.redis_cost`: the CPU that Redis takes for a streamed call, for `costs.toml`.

Each call is different: the cache looks it up, misses it and keeps its answer. Its backend keeps no state, so the gateway
stores the response.
"""

import argparse
import itertools
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from tests.bench.answers import BURST_EVENTS
from tests.bench.event_loop import run_until_signal
from tests.bench.load import LoadRun
from tests.bench.processes import start_server
from tests.bench.servers import SERVERS, UPSTREAM
from tests.bench.workloads import COUNTER, Workload, build_body

USES = {"state_ms": ("headgate, state in Redis", "state"), "cache_ms": ("headgate, Redis", "redis")}
"""What is measured: the name of the server, and of the files of its config and of its Redis's socket."""
BODY = build_body("burst compact", stream=True, store=True, prompt_cache_key=COUNTER.decode())


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench.redis_cost", description=__doc__)
    options.add_argument("--seconds", type=float, default=10, help="for each of both uses (default 10)")
    finished = run_until_signal(measure(options.parse_args().seconds))
    sys.exit(0 if finished else 130)


async def measure(seconds: float) -> None:
    """Print the two lines of `costs.toml`."""
    for use, server in USES.items():
        cpu_s, calls = await cost_of(*server, seconds)
        print(f"{use} = {1000 * cpu_s / calls:.3f}  # {calls} calls", flush=True)  # noqa: T201


async def cost_of(name: str, files: str, seconds: float) -> tuple[float, int]:
    """Return the CPU time of the Redis behind a server, and for how many calls it took that."""
    workload = Workload("redis", name, BODY, 16, events=BURST_EVENTS, cache_status=b"fwd=uri-miss")
    with TemporaryDirectory(prefix="headgate-bench-") as made:
        folder, numbers = Path(made), itertools.count()
        async with start_server("upstream", UPSTREAM, folder) as upstream:
            command, config = SERVERS[name](upstream.port, folder), folder / f"{files}.toml"
            config.write_text(config.read_text().replace("keeps_state = true", "keeps_state = false"))
            async with start_server(name, command, folder) as server:
                with redis.Redis(unix_socket_path=str(config.with_suffix(".sock"))) as client:
                    before = _cpu_s(client)
                    await LoadRun(workload, server, is_headgate=True, numbers=numbers).measure(seconds)
                    return _cpu_s(client) - before, next(numbers)


def _cpu_s(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


if __name__ == "__main__":
    main()
