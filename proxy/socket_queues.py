"""The bytes in the queues of a socket, as the kernel counts them."""

import fcntl
import sys
import termios


def unacknowledged_bytes(file: int) -> int:
    """Return how many sent bytes the other machine has not acknowledged; 0 where the system cannot tell.

    The kernel takes more only after megabytes have left, which can take minutes.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (SIOCOUTQ, the same number as TIOCOUTQ)
    """
    return _ask(file, termios.TIOCOUTQ)


def unread_bytes(file: int) -> int:
    """Return how many bytes have arrived and were not read yet; 0 where the system cannot tell.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (SIOCINQ, the same number as FIONREAD)
    """
    return _ask(file, termios.FIONREAD)


def _ask(file: int, request: int) -> int:
    held = bytearray(4)  # into bytes, which cannot be written, it takes five times as long
    try:
        fcntl.ioctl(file, request, held)
    except (OSError, ValueError):  # not a TCP socket of this system, or closed
        return 0
    return int.from_bytes(held, sys.byteorder)
