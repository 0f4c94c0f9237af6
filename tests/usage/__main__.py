"""`python -m tests.usage [--calls N]`: the test of the sum with 10,000 calls, on SQLite and on Redis."""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.redis_server import RedisServer
from tests.usage.crowd import run_crowd
from tests.usage.test_usage_processes import check


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls
    for store in ("sqlite", "redis"):
        with TemporaryDirectory() as name:
            server, started = RedisServer(Path(name)), time.monotonic()
            server.start()
            more = f'path = "{name}/state.db"' if store == "sqlite" else f'url = "{server.url}"'
            state = f'use = "{store}"\n{more}\ntimeout_ms = 30000'
            crowd = asyncio.run(run_crowd(calls, state, Path(name)))
            server.stop()
            numbers = {name: number for name, number in crowd.usage.items() if number}
            sys.stdout.write(f"{store}: {calls} calls in {time.monotonic() - started:.0f} s, upstream {crowd.received} received,"
                             f" {crowd.answered} answered; clients {dict(crowd.ends)}; counted {numbers}\n")  # fmt: skip
            check(crowd, calls)


if __name__ == "__main__":
    main()
