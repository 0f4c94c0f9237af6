"""The address of a Redis, checked before anything is connected. No message repeats it: it may contain a password.

Source: https://redis.readthedocs.io/en/stable/connections.html#redis.Redis.from_url
"""

import re
from urllib.parse import SplitResult, parse_qs, urlsplit

DATABASE = re.compile(r"/?|/\d{1,5}")
TLS_PARAMETERS = frozenset({
    "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile",
})  # fmt: skip


def check_address(url: str) -> None:
    """Raises ValueError for an address with a password, a port that is none, or a parameter that is unknown."""
    parts = urlsplit(url)
    is_socket = parts.scheme == "unix"
    parameters = parse_qs(parts.query, keep_blank_values=True)
    user = parts.netloc.rpartition("@")[0]
    is_cut = not is_socket and "@" in url and not user  # by a "/" or "?" in a password
    if ":" in user or is_cut or "password" in parameters:
        raise ValueError('it has a password; set password = "env:NAME" instead')
    allowed = {"db"} | (TLS_PARAMETERS if parts.scheme == "rediss" else set())
    if parameters.keys() - allowed or parts.fragment:
        raise ValueError(f"it has an unknown parameter; known are {', '.join(sorted(allowed))}")
    if not all(value.isdecimal() for value in parameters.get("db", [])):
        raise ValueError("the number of the database in it is none")
    if not is_socket and (not _has_port(parts) or not DATABASE.fullmatch(parts.path)):
        raise ValueError("after redis:// it has a host, a port and the number of a database: host:6379/0")


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of "host:port". Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError('an address of Redis is "host:port"')
    return host.strip("[]"), int(port)


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is a number, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False
