"""A process that is to end says so for a while before its listener closes."""

import asyncio
import signal
from pathlib import Path

from tests.conftest import CANNED
from tests.forked import start_proxy
from tests.raw import ask, post
from tests.timeouts import TIMEOUT_S

READY = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_calls_are_answered_during_the_delay(tmp_path: Path):
    """With 503 from /readyz, so that load balancers send no more of them; then the process ends."""
    config = tmp_path / "gateway.toml"
    config.write_text(f"[server]\nport = 0\ndrain_delay_s = 2\n{CANNED}")
    process = await start_proxy("serve", "--config", str(config))
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().split()[3].removesuffix("/v1.")
    process.send_signal(signal.SIGTERM)
    seen = set()
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while process.returncode is None:
                ready = (await ask(address, READY)).status
                seen.add((ready, (await ask(address, post())).status))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the listener has closed
        await process.communicate()

    assert process.returncode == 0
    assert (503, 200) in seen
