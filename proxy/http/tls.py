"""TLS of the gateway's own listener: one context, whose certificate is replaced when its files change."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from proxy.wire.loggable import short_message

log = structlog.get_logger()

Stamps = list[tuple[int, int, int] | None]
CHECK_S = 5.0
"""The interval in which the files are checked, in seconds."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for a server with this certificate chain and its key, both PEM.

    Raises ValueError if a file cannot be read, is encrypted, or if they do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {path}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or "they are not PEM files"
        raise ValueError(f"tls_cert and tls_key do not fit: {reason}") from None


def _no_password() -> str:
    """Raise an error: OpenSSL would prompt on the terminal."""
    raise ValueError("tls_key is encrypted; decrypt it: openssl pkey -in KEY -out NEW")


class ListenerTls:
    """The TLS context of a listener, whose certificate is replaced when its files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ValueError for files that cannot be used."""
        self._files = certificate, key
        self._seen = self._stamps()
        self.context = server_context(certificate, key)
        self._refused: Stamps = []

    async def refresh(self) -> None:
        """Use what the files have now for new connections, if they changed. A pair that is half written is tried again.

        They are read in a thread, and tried on a context of their own, because one that has read half of a pair is of
        no use; the listener's is changed on the event loop, where no handshake uses it meanwhile.
        """
        stamps = await asyncio.to_thread(self._stamps)
        if stamps == self._seen:
            return
        try:
            await asyncio.to_thread(server_context, *self._files)
            _load(self.context, *self._files)
        except ValueError as error:
            if stamps != self._refused:
                log.error("tls.reload_failed", reason=short_message(error))  # noqa: TRY400  the place says nothing
            self._refused = stamps
        else:
            if stamps == await asyncio.to_thread(self._stamps):  # else a file has changed since: it is read once more
                self._seen = stamps
                log.info("tls.reloaded")

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Refresh every `CHECK_S` inside the block."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            await self.refresh()

    def _stamps(self) -> Stamps:
        """Return what identifies the content of each file; None for one that is missing."""
        stamps: Stamps = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return stamps
