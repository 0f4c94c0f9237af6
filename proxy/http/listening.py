"""Binds addresses before anything is loaded: what is taken is noticed at once. Nothing is accepted on them yet."""

import errno
import socket
from collections.abc import Sequence

BACKLOG = 1024
MAIN, ADMIN = "port in [server]", "port in [admin]"


def bind(host: str, port: int, key: str = MAIN) -> Sequence[socket.socket]:
    """Return a socket for each address of a host, all with one port; 0 is a free one.

    `key` is the one that names the port. Raises OSError if the port is taken, or the host no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, f"cannot be listened on: {error.strerror}", host) from error
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        sockets.append(listener)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], port or sockets[0].getsockname()[1], *address[2:]))
        except OSError as error:
            close(sockets)
            raise explained(error, host, port, key) from error
    return sockets


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Return as many sockets that listen on one address. Raises OSError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    try:
        if port:
            socket.create_server((host, port), family=family).close()  # another gateway may share its port as well
        for _ in range(count):
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
            port = listener.getsockname()[1]
            listeners.append(listener)
    except OSError as error:
        close(listeners)
        raise explained(error, host, port) from error
    return listeners


def explained(error: OSError, host: str, port: int, key: str = MAIN) -> OSError:
    """Return an error that names the address, and says what can be done."""
    option = "" if key == ADMIN else "--port, HEADGATE_PORT or "
    known = {
        errno.EADDRINUSE: f"it is used by another process; choose another port with {option}{key}",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
        errno.EACCES: "this user may not listen on that port; choose one of 1024 or more",
    }
    number = error.errno or 0
    return OSError(number, known.get(number, error.strerror), f"{host}:{port}")


def close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()
