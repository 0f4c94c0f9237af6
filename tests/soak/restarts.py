"""SIGTERM while connections are kept alive and busy: every request that was sent must be answered."""

import asyncio
import random
from pathlib import Path

from tests.soak.gateway import POLITE_KEY, Options, start_gateway
from tests.soak.polite import Figures, build_body

CONNECTIONS = 16
BUSY_S = 0.4
THINK_S = 0.02
BODY = build_body("polite-json", 0)
REQUEST = (
    f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {POLITE_KEY}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY


async def restart(folder: Path, polite_port: int, hostile_port: int, figures: Figures) -> float | None:
    """Start a gateway, end it under load, and return how long that took; None if it had to be killed."""
    async with start_gateway(Options(), folder, polite_port, hostile_port) as gateway:
        callers = [asyncio.create_task(_call_until_closed(gateway.port, figures)) for _ in range(CONNECTIONS)]
        await asyncio.sleep(BUSY_S + random.random() * BUSY_S)
        gateway.terminate()
        status = await gateway.wait()
        await asyncio.gather(*callers)
        return None if status is None else gateway.stop_s


async def _call_until_closed(port: int, figures: Figures) -> None:
    """Send one request after another until an answer says that the connection is closed."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        is_open = True
        while is_open:
            figures.requests += 1
            sent = loop.time()
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            figures.latencies_s.append(loop.time() - sent)
            if not head.startswith(b"HTTP/1.1 200"):
                figures.lost.append(head[:20].decode())
            is_open = b"connection: close" not in head.lower()
            await asyncio.sleep(random.random() * THINK_S)
    except (EOFError, OSError) as error:
        figures.lost.append(type(error).__name__)
    finally:
        writer.transport.abort()
