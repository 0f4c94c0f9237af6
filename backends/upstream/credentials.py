"""The gateway's own headers of every request: its key, which may expire, and configured headers."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from backends.upstream.scrub import Scrubber
from backends.upstream.settings import UpstreamSettings, plain_value
from proxy.wire.errors import BackendError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

COMMAND_TIMEOUT_S = 10.0
MAX_TOKEN_BYTES = 65_536
RETRY_S = 5.0
"""The time after which an unreadable key is read again, in seconds; the last one is used meanwhile."""


class TokenUnavailable(Exception):
    """A key could not be read. Its message names the place and the fault, never what was read."""


class Credentials:
    """The gateway's own headers, and the secrets to remove from answers because of them."""

    def __init__(self, settings: UpstreamSettings, base: Mapping[str, str]) -> None:
        """`base` are headers that every request has besides."""
        self._settings = settings
        configured = {name: plain_value(value) for name, value in settings.headers.items()}
        self.headers: Mapping[str, str] = {**base, **configured}
        """The headers with the key that was read last. They are never modified."""
        self._secrets = [value.get_secret_value() for value in settings.headers.values() if not isinstance(value, str)]
        self._token: str | None = None
        self._expires = float("inf")
        self._read_at = 0.0
        self._reading = asyncio.Lock()
        self.can_expire = bool(settings.token_command or settings.token_file)
        if settings.api_key is not None:
            self._use(settings.api_key.get_secret_value())
        if self.can_expire:
            self._expires = 0.0
        self.scrubber = Scrubber(*self._secrets, *([] if self._token is None else [self._token]))

    @property
    def current(self) -> Mapping[str, str] | None:
        """The headers; None if the key has to be read first."""
        if self.can_expire and time.monotonic() >= self._expires:
            return None
        return self.headers

    async def read(self) -> Mapping[str, str]:
        """Read the key and return the headers. Raises BackendError if there is none yet, and none can be read."""
        async with self._reading:
            if self.current is None:
                await self._read()
        return self.headers

    async def renew(self, refused: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return headers with another key than the refused one in these; None if there is none yet."""
        now = time.monotonic()
        if self.can_expire and self.headers is refused and now >= self._read_at + RETRY_S:
            self._expires = now
            with suppress(BackendError):
                await self.read()
        return None if self.headers == refused else self.headers

    async def _read(self) -> None:
        try:
            token = (
                await _run(self._settings.token_command) if self._settings.token_command else await self._read_file()
            )
        except TokenUnavailable as error:
            log.warning("credentials.read_failed", backend=self._settings.name, reason=short_message(error))
            if self._token is None:
                message = "The gateway has no credentials for the upstream."
                raise BackendError(
                    message, code="upstream_auth", source="gateway", sent=False, reason=f"key: {error}"
                ) from error
            self._expires = time.monotonic() + RETRY_S
            return
        before = [] if self._token is None else [self._token]
        self._use(token)
        self.scrubber.search_for(*self._secrets, *before, token)  # answers to requests with the last one still arrive
        self._expires = time.monotonic() + self._settings.token_ttl_s

    async def _read_file(self) -> str:
        path = self._settings.token_file or Path()
        try:
            return _checked(await asyncio.to_thread(path.read_bytes), str(path))
        except OSError as error:
            raise TokenUnavailable(f"{path}: {error.strerror}") from error

    def _use(self, token: str) -> None:
        name, value = ("Authorization", f"Bearer {token}") if self._settings.auth == "bearer" else ("api-key", token)
        self.headers = {**self.headers, name: value}
        self._token = token


async def _run(command: tuple[str, ...]) -> str:
    """Return what a command prints. Raises TokenUnavailable."""
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe, stderr=nothing)
    except OSError as error:
        raise TokenUnavailable(f"{command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            printed, _ = await process.communicate()
    except TimeoutError as error:
        raise TokenUnavailable(f"{command[0]}: no end within {COMMAND_TIMEOUT_S:g} s") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise TokenUnavailable(f"{command[0]}: exit status {process.returncode}")
    return _checked(printed, command[0])


def _checked(raw: bytes, place: str) -> str:
    """Return a key that can be sent in a header. Raises TokenUnavailable."""
    token = raw.decode(errors="replace").strip()
    if not token or len(raw) > MAX_TOKEN_BYTES or not (token.isascii() and token.isprintable()):
        raise TokenUnavailable(f"{place}: it gives no key, or one that cannot be sent")
    return token
