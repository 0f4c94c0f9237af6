"""The errors of an upstream that did not answer, or not with valid HTTP. `sent`: it may be running the request.

`reason` is for the operator: it is logged and on the span, and no caller sees it.
"""

import errno
import os
import socket
import ssl

from proxy.wire.errors import BackendError

MAX_REASON_CHARS = 200


def unreachable(reason: str | None = None, *, retryable: bool = True) -> BackendError:
    message = "The upstream cannot be reached."
    return BackendError(
        message, code="upstream_unreachable", source="network", retryable=retryable, sent=False, reason=reason
    )  # fmt: skip


class TunnelRefused(OSError):
    """A proxy did not open a tunnel. `reason` says why, in words of the gateway."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def connect_timed_out(after_s: float) -> BackendError:
    message, reason = "The upstream did not accept a connection in time.", f"timeout: no connection in {after_s:g} s"
    return BackendError(
        message, status=504, code="upstream_connect_timeout", source="network", retryable=True, sent=False,
        reason=reason,
    )  # fmt: skip


def timed_out(after_s: float, *, sent: bool = True) -> BackendError:
    """Return the error of an answer that did not begin in time."""
    message, reason = "The upstream did not answer in time.", f"timeout: no event in {after_s:g} s"
    return BackendError(
        message, status=504, code="upstream_timeout", source="upstream" if sent else "network", retryable=not sent,
        sent=sent, reason=reason,
    )  # fmt: skip


def stalled(after_s: float) -> BackendError:
    """Return the error of an answer that began, and then stopped."""
    message, reason = "The upstream stopped sending its answer.", f"timeout: no other event in {after_s:g} s"
    return BackendError(message, status=504, code="upstream_stalled", reason=reason)


def overran(after_s: float) -> BackendError:
    """Return the error of an answer that took too long as a whole."""
    message, reason = "The upstream did not finish its answer in time.", f"timeout: no end in {after_s:g} s"
    return BackendError(message, status=504, code="upstream_total_timeout", reason=reason)


def was_reset(reason: str | None = None, *, sent: bool = True) -> BackendError:
    message = "The upstream broke off the connection."
    return BackendError(
        message, code="upstream_reset", source="network", retryable=True, sent=sent, reason=reason
    )  # fmt: skip


def files_exhausted() -> BackendError:
    """Return the error for a process that has only the reserved files left."""
    message = "The gateway has no free connections; try again later."
    return BackendError(
        message, status=503, code="connections_exhausted", headers={"Retry-After": "1"}, source="gateway", sent=False,
        reason="the limit on open files is reached",
    )  # fmt: skip


RESERVED_FILES = 128
"""How many of the last file descriptors are reserved for callers, refusals included."""


def invalid_answer(found: str, *, sent: bool = True) -> BackendError:
    return BackendError(f"The upstream sent {found}.", code="upstream_invalid_response", sent=sent)


def reason_of(error: BaseException) -> str:
    """Return the reason in an error of the network, for the operator: `TLS: self-signed certificate`."""
    return _describe(error)[:MAX_REASON_CHARS]


def _describe(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {getattr(error, 'verify_message', None) or 'the certificate is not valid'}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(getattr(error, 'reason', None) or 'the handshake failed').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return f"DNS: {error.strerror}"
    if isinstance(error, ConnectionRefusedError | ConnectionResetError):
        return "connection refused" if isinstance(error, ConnectionRefusedError) else "connection reset"
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return os.strerror(error.errno or 0).lower()
    return error.reason if isinstance(error, TunnelRefused) else type(error).__name__


def too_large(found: str = "is too large") -> BackendError:
    """Return the error of an answer that is beyond a limit of the gateway's own."""
    return BackendError(f"The upstream's answer {found}.", code="upstream_too_large", source="gateway")
