"""What the system still holds of bytes that were sent."""

import asyncio
import fcntl
import sys
import termios


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how much of what was sent the other machine has not received; 0 where the system cannot tell.

    The kernel takes more only after megabytes have left, which can take minutes.

    Source: https://man7.org/linux/man-pages/man7/tcp.7.html (SIOCOUTQ, the same number as TIOCOUTQ)
    """
    try:
        held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # not a TCP socket of this system, or closed
        return 0
    return int.from_bytes(held, sys.byteorder)
