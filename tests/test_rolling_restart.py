"""Two gateways behind a load balancer that asks /readyz: each is replaced under load, and no call is lost."""

import asyncio
import signal
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp

from tests.conftest import CANNED
from tests.forked import ForkedProcess, start_proxy

ASKED_EVERY_S = 0.05
CLIENTS = 8
LIMIT_S = 60  # only ends a test that hangs


class Balancer:
    """Passes each connection to a gateway that was ready when it was asked last, in turn, as a Service does."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.gateways: list[str] = []
        self.ready: list[str] = []
        self._turn = 0

    async def follow(self) -> None:
        while True:
            asked = list(self.gateways)
            answers = await asyncio.gather(*map(self._is_ready, asked))
            self.ready = [gateway for gateway, is_ready in zip(asked, answers, strict=True) if is_ready]
            await asyncio.sleep(ASKED_EVERY_S)

    async def _is_ready(self, gateway: str) -> bool:
        try:
            async with self._http.get(f"{gateway}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._turn += 1
        host, port = self.ready[self._turn % len(self.ready)].removeprefix("http://").split(":")
        upstream, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, back), _copy(upstream, writer))


async def _copy(source: StreamReader, target: StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()


async def start(folder: Path, number: int) -> tuple[ForkedProcess, str]:
    config = folder / f"{number}.toml"
    state = f'[state]\nuse = "sqlite"\npath = "{folder}/state.db"\ntimeout_ms = 30000\n'
    pace = CANNED.replace('use = "replay"', 'use = "replay"\npace_ms = 5')
    config.write_text(f"[server]\nport = 0\ndrain_delay_s = 0.5\ndrain_s = 20\n{state}{pace}")
    process = await start_proxy("serve", "--config", str(config))
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().split()[3].removesuffix("/v1.")


async def end(process: ForkedProcess) -> None:
    process.terminate()
    await process.communicate()


async def call(address: str, *, stream: bool) -> str:
    """Make one call on a connection of its own, as a client does that the balancer sends anywhere."""
    async with aiohttp.ClientSession() as session, session.post(
        f"{address}/v1/responses", json={"model": "m", "input": "x", "stream": stream}
    ) as answer:  # fmt: skip
        text = await answer.text()
        is_complete = "event: response.completed" in text if stream else '"status":"completed"' in text
        return f"{answer.status} {'complete' if is_complete else text[:200]}"


async def test_no_call_is_lost_while_both_are_replaced(tmp_path: Path):
    outcomes: Counter[str] = Counter()
    is_over = asyncio.Event()
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        balancer = Balancer(http)
        running = [await start(tmp_path, number) for number in (0, 1)]
        balancer.gateways = [address for _, address in running]
        following = asyncio.create_task(balancer.follow())
        server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
        address = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        while len(balancer.ready) < 2:  # noqa: ASYNC110  it follows in a task
            await asyncio.sleep(ASKED_EVERY_S)

        async def use(number: int) -> None:
            while not is_over.is_set():
                outcomes[await call(address, stream=number % 2 == 0)] += 1

        clients = [asyncio.create_task(use(number)) for number in range(CLIENTS)]
        codes = []
        for number, (process, old) in enumerate(running):
            replacement = await start(tmp_path, 2 + number)
            balancer.gateways.append(replacement[1])
            stack.push_async_callback(end, replacement[0])
            while replacement[1] not in balancer.ready:  # noqa: ASYNC110  it follows in a task
                await asyncio.sleep(ASKED_EVERY_S)
            process.send_signal(signal.SIGTERM)
            await process.communicate()
            codes.append(process.returncode)
            balancer.gateways.remove(old)
        is_over.set()
        await asyncio.gather(*clients)
        following.cancel()
        server.close()
        await server.wait_closed()

    assert codes == [0, 0]
    assert outcomes.keys() == {"200 complete"}
    assert outcomes["200 complete"] > CLIENTS
