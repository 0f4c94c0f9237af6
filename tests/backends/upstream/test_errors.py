"""What operators read of a network's faults."""

import errno
import os
import socket
import ssl

import pytest

from backends.upstream.errors import MAX_REASON_CHARS, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "connection reset"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "DNS: Name or service not known"),
        (OSError(errno.ENETUNREACH, "Multiple exceptions: ..."), "network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to host"),
        (OSError("Multiple exceptions: [Errno 1], [Errno 2]"), "OSError"),
        (RuntimeError("of uvloop"), "RuntimeError"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1)"), "TLS: the handshake failed"),
        (ssl.SSLCertVerificationError(1, "x"), "TLS: the certificate is not valid"),
    ],
)
def test_an_error_has_a_reason(error: Exception, reason: str):
    """It is of the system's words, never of the message, which may quote what was sent."""
    assert reason_of(error) == reason


def test_a_reason_is_bounded():
    """A certificate's names come from the upstream."""
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "Hostname mismatch, " + "a" * 100_000

    assert len(reason_of(error)) == MAX_REASON_CHARS


def test_the_system_has_words_for_a_number():
    """They are in lower case, as in the table above."""
    assert os.strerror(errno.ENETUNREACH).lower() == "network is unreachable"
