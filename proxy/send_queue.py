"""The bytes in a socket's send queue."""

import fcntl
import sys
import termios


def unacknowledged_bytes(file: int) -> int:
    """Return how many sent bytes the other machine has not acknowledged; 0 where the system cannot tell.

    The kernel takes more only after megabytes have left, which can take minutes.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (SIOCOUTQ, the same number as TIOCOUTQ)
    """
    held = bytearray(4)  # into bytes, which cannot be written, it takes five times as long
    try:
        fcntl.ioctl(file, termios.TIOCOUTQ, held)
    except (OSError, ValueError):  # not a TCP socket of this system, or closed
        return 0
    return int.from_bytes(held, sys.byteorder)
