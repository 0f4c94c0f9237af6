"""Binds addresses before anything is loaded, so that a port in use is noticed at once; nothing is accepted yet."""

import errno
import socket
from collections.abc import Sequence
from typing import Any

BACKLOG = 1024
MAIN, ADMIN = "server", "admin"
"""The tables of the config that name an address."""


def bind(host: str, port: int, table: str = MAIN) -> Sequence[socket.socket]:
    """Return a socket for each address of a host, all with one port; 0 is a free one.

    `table` is the one that names them. Raises OSError if the port is taken, or the host no address of this machine.
    """
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(_addresses(host, port, table)):
        listener = socket.socket(family, kind, protocol)
        sockets.append(listener)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], port or sockets[0].getsockname()[1], *address[2:]))
        except OSError as error:
            close(sockets)
            raise explain_error(error, host, port, table) from error
    return sockets


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Return as many sockets that listen on one address. Raises OSError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    _addresses(host, port, MAIN)
    try:
        if port:
            socket.create_server((host, port), family=family).close()  # another gateway may share its port as well
        for _ in range(count):
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
            port = listener.getsockname()[1]
            listeners.append(listener)
    except OSError as error:
        close(listeners)
        raise explain_error(error, host, port) from error
    return listeners


def explain_error(error: OSError, host: str, port: int, table: str = MAIN) -> OSError:
    """Return an error that names the address and a remedy."""
    number = error.errno or 0
    known = {
        errno.EADDRINUSE: f"it is used by another process; choose another port with {_settings('port', table)}",
        errno.EADDRNOTAVAIL: f"this machine does not have that address; it is set with {_settings('host', table)}",
        errno.EACCES: f"this user may not listen on that port; choose 1024 or more with {_settings('port', table)}",
    }
    return OSError(number, known.get(number, error.strerror), f"{host}:{port}")


def _addresses(host: str, port: int, table: str) -> Sequence[tuple[Any, ...]]:
    """Return the addresses of a host, as `getaddrinfo` does. Raises OSError that says where it is set."""
    try:
        return socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        hint = f"name another host with {_settings('host', table)}"
        raise OSError(error.errno, f"cannot be listened on: {error.strerror}; {hint}", host) from error


def _settings(name: str, table: str) -> str:
    """Return the options and keys that set a host or a port."""
    options = "" if table == ADMIN else f"--{name}, HEADGATE_{name.upper()} or "
    return f"{options}{name} in [{table}]"


def close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()
