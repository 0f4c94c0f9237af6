"""A real browser for tests: Debian's Chromium without a window, driven by its DevTools protocol.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect

from tests.timeouts import pause

CHROMIUM = shutil.which("chromium")
LIMIT_S = 60.0  # only ends a test that hangs
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


class LeftPageError(Exception):
    """The page was left while something was asked of it."""


class BrowserPage:
    """One page of a browser. `faults` has what it logged as an error: a script that failed, a rule of the CSP.

    `refusals` has what it could not load: answers of 400 and more.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._loads = asyncio.Queue[str]()
        self.faults: list[str] = []
        self.refusals: list[str] = []

    async def listen(self) -> None:
        """Read what the browser says, until it ends."""
        async for message in self._connection:
            said = orjson.loads(message)
            if (future := self._waiting.pop(said.get("id"), None)) is not None and not future.done():
                future.set_result(said)
            elif said.get("method") == "Page.loadEventFired":
                self._loads.put_nowait("")
            elif said.get("method") == "Runtime.exceptionThrown":
                self.faults.append(str(said["params"]))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["source"] in (
                "security",
                "javascript",
            ):
                self.faults.append(said["params"]["entry"]["text"])
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["source"] == "network":
                self.refusals.append(said["params"]["entry"]["text"])

    async def command(self, method: str, **params: Any) -> Any:
        """Return the result of a command of the protocol."""
        self._last += 1
        future = self._waiting[self._last] = asyncio.get_running_loop().create_future()
        await self._connection.send(orjson.dumps({"id": self._last, "method": method, "params": params}).decode())
        async with asyncio.timeout(LIMIT_S):
            answer = await future
        if "navigated" in answer.get("error", {}).get("message", ""):
            raise LeftPageError
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, address: str) -> None:
        """Load a page."""
        self._drop_loads()
        await self.command("Page.navigate", url=address)
        await self._load()

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = await self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        """Return what a person reads in an element."""
        return str(await self.evaluate(f"document.querySelector({orjson.dumps(selector).decode()}).innerText"))

    async def fill(self, **fields: str) -> None:
        """Type into fields of the page, by their names."""
        for name, value in fields.items():
            wanted, text = orjson.dumps(f"main [name={name}]").decode(), orjson.dumps(value).decode()
            await self.evaluate(f"document.querySelector({wanted}).value = {text}")

    async def click(self, selector: str) -> None:
        """Click what leads to another page, and wait for it."""
        self._drop_loads()
        await self.evaluate(f"document.querySelector({orjson.dumps(selector).decode()}).click()")
        await self._load()

    async def press(self, key: str) -> None:
        """Press a key."""
        texts = {"Enter": "\r", " ": " "}
        more = {"text": texts[key]} if key in texts else {}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32}
        for kind in ("keyDown", "keyUp"):
            await self.command("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    async def tab_to(self, selector: str) -> None:
        """Press Tab until an element has the focus, and it is seen that it has. Raises AssertionError."""
        wanted = orjson.dumps(selector).decode()
        for _ in range(200):
            await self.press("Tab")
            if await self.evaluate(f"document.activeElement?.matches({wanted})"):
                assert await self.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"{selector} is not reached by Tab")

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.command("Input.insertText", text=text)

    async def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                with suppress(LeftPageError):
                    if await self.evaluate(script):
                        return
                await pause()

    async def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Show the page in another size, and in light or dark."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """Return the page as it is seen, as PNG."""
        return base64.b64decode((await self.command("Page.captureScreenshot", format="png"))["data"])

    def _drop_loads(self) -> None:
        while not self._loads.empty():
            self._loads.get_nowait()

    async def _load(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._loads.get()


@contextmanager
def running_chromium(profile: Path) -> Iterator[str]:
    """Start a browser with an empty profile in a folder, and give the address at which it is driven."""
    assert CHROMIUM is not None
    command = [CHROMIUM, f"--user-data-dir={profile}", *OPTIONS]
    with Popen(command, stdout=DEVNULL, stderr=PIPE) as process:
        try:
            assert process.stderr is not None
            address = _address_in(process.stderr)
            Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the browser
            yield address
        finally:
            process.kill()


@asynccontextmanager
async def open_page(browser: str) -> AsyncIterator[BrowserPage]:
    """Open a page in the browser at an address, with cookies and storage of its own."""
    async with connect(browser, max_size=2**26) as connection:
        control = BrowserPage(connection)
        reading = asyncio.create_task(control.listen())
        context = (await control.command("Target.createBrowserContext"))["browserContextId"]
        target = (await control.command("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        async with connect(f"{browser.partition('/browser/')[0]}/page/{target}", max_size=2**26) as opened:
            page = BrowserPage(opened)
            listening = asyncio.create_task(page.listen())
            for domain in ("Page", "Runtime", "Log"):
                await page.command(f"{domain}.enable")
            yield page
            listening.cancel()
        await control.command("Target.disposeBrowserContext", browserContextId=context)
        reading.cancel()


def _address_in(lines: Iterable[bytes]) -> str:
    """Return the address at which a browser listens, which is in what it prints."""
    for line in lines:
        found = re.search(rb"ws://127\.0\.0\.1:\d+/devtools/browser/\S+", line)
        if found is not None:
            return found[0].decode()
    raise AssertionError("the browser has ended")
