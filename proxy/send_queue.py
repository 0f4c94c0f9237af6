"""What the system still holds of bytes that were sent."""

import fcntl
import sys
import termios

_NOTHING = bytes(4)


def unacknowledged_bytes(file: int) -> int:
    """Return how much of what was sent on a socket the other machine has not received; 0 where the system cannot tell.

    The kernel takes more only after megabytes have left, which can take minutes.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (SIOCOUTQ, the same number as TIOCOUTQ)
    """
    try:
        held = fcntl.ioctl(file, termios.TIOCOUTQ, _NOTHING)
    except (OSError, ValueError):  # not a TCP socket of this system, or closed
        return 0
    return 0 if held == _NOTHING else int.from_bytes(held, sys.byteorder)
