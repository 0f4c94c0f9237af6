"""Addresses that are bound before anything is loaded."""

import socket

import pytest

from proxy.http.listening import ADMIN, bind, close, open_listeners


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
def test_all_addresses_of_a_host_have_one_port(host: str):
    """Nothing is accepted yet."""
    sockets = bind(host, 0)
    ports = {each.getsockname()[1] for each in sockets}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", min(ports)))
    close(sockets)

    assert len(ports) == 1


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("203.0.113.1", "203.0.113.1:{port}: this machine does not have that address"),
        ("no-such-host.invalid", "no-such-host.invalid: cannot be listened on: "),
        ("127.0.0.1", "127.0.0.1:{port}: it is used by another process; choose another port with port in [admin]"),
    ],
)
def test_an_error_says_what_is_wrong_with_the_address(host: str, message: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"address|process|listened on") as caught:
            bind(host, port, ADMIN)

    assert f"{caught.value.filename}: {caught.value.strerror}".startswith(message.format(port=port))


def test_a_host_that_is_not_known_says_where_it_is_set():
    """For one process, and for several workers."""
    for listen in (lambda: bind("no-such-host.invalid", 0), lambda: open_listeners("no-such-host.invalid", 1, 2)):
        with pytest.raises(
            OSError, match="name another host with --host, HEADGATE_HOST or host in \\[server]"
        ) as caught:
            listen()

        assert caught.value.filename == "no-such-host.invalid"
