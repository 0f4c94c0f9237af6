"""Limits where images and files of the input may come from, because a provider fetches them from inside its network.

Request: checks every string of input, instructions and prompt under a name that ends in `url`, however it is written
    (image_url, imageUrl, an object {"url"}), under `file_data` and under `file_id`; of tools their image_url, file_url,
    file_data and file ids. Refuses with `scheme`, `malformed` (a URL in which two readers may find two hosts),
    `userinfo`, `private`, `host_not_allowed`, `data_too_long`, `file_id`, `too_many_values`. It does not check an MCP
    server_url (see `tools`), nor links and ids that only say where something came from (annotations, results, actions).
    A host is checked by its name and never looked up: the provider fetches it, not the gateway. What a public name
    resolves or redirects to is for the provider to check; `hosts` limits URLs to known names.
Response: passes.
Source: https://url.spec.whatwg.org/#concept-host-parser, and for addresses
    https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

from pydantic import NonNegativeInt, field_validator

from policies import Policy, PolicyState, RequestCheck
from policies.support.globs import compile_globs
from policies.support.urls import (
    AUTHORITY,
    FILE_DATA,
    FILE_IDS,
    HOST,
    MAX_HOST_CHARS,
    SCHEME,
    UNSAFE,
    is_reference,
    may_have_references,
    path_of,
    references,
    shorten,
)
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation

Problem = tuple[str, str]  # the code of a refusal, and what follows the name of the field in its message
Address = IPv4Address | IPv6Address
MALFORMED: Problem = ("malformed", "is no URL that all readers read alike; write https://host/path.")
HOST_GLOB = re.compile(r"[A-Za-z0-9_.*?-]+|[0-9A-Fa-f.*?]*:[0-9A-Fa-f.*?]*:[0-9A-Fa-f:.*?]*")
NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")
MAX_URL_CHARS = 65_536

# Only these are routed on the internet, except those that stand for something else: 6to4 and Teredo with an IPv4
# address inside, documentation, anycast relays, multicast, and addresses where clouds have their own services.
GLOBAL_SIX = ip_network("2000::/3")
SPECIAL = tuple(map(ip_network, (
    "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)))  # fmt: skip
PRIVATE_SUFFIXES = (
    ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".private", ".corp", ".lan", ".home",
    ".home.arpa", ".svc", ".metadata.tencentyun.com",
    ".nip.io", ".sslip.io", ".xip.io", ".localtest.me", ".lvh.me",  # these resolve to any address in the name
)  # fmt: skip


class InputUrls(Policy):
    schemes: tuple[str, ...] = ("https", "data")
    """Schemes that a URL may have. "file" is never allowed: it names files of the machine that reads the URL."""
    hosts: tuple[str, ...] = ("*",)
    """Hosts that a URL may name, with * and ?; an empty list allows none. It does not allow private hosts."""
    deny_hosts: tuple[str, ...] = ()
    """Hosts that it may not name, even if `hosts` has them."""
    private: bool = False
    """Whether it may name what is not public: loopback, private, link-local addresses, single words, .internal ..."""
    file_ids: bool = True
    """Whether a request may name files by the ids under which an upstream keeps them."""
    max_data_chars: NonNegativeInt = 73_400_320
    """How long a data: URL or file_data may be, in characters."""

    @field_validator("schemes")
    @classmethod
    def _are_schemes(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        for scheme in schemes:
            if not SCHEME.fullmatch(f"{scheme}:"):
                raise ValueError(f"'{scheme}' is not the name of a scheme, such as https")
            if scheme.lower() == "file":
                raise ValueError("'file' cannot be allowed: it names files of the machine that reads the URL")
        return tuple(scheme.lower() for scheme in schemes)

    @field_validator("hosts", "deny_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not HOST_GLOB.fullmatch(host):
                raise ValueError(f"'{host}' is not a host alone, such as images.example.com or *.example.com")
        return tuple(host.lower().removesuffix(".") for host in hosts)

    def request_check(self, state: PolicyState) -> RequestCheck:
        del state
        find_problem = self._reference_check()

        def check(call: Call, _context: Context) -> Call:
            if may_have_references(call.encoded):
                for path, name, text in references(call.body):
                    if is_reference(path, name) and (problem := find_problem(name, text)) is not None:
                        where = path_of(path)
                        raise PolicyViolation(problem[0], f"{where} {problem[1]}", param=where)
            return call

        return check

    def _reference_check(self) -> Callable[[str, str], Problem | None]:
        """Return the function that checks one reference, given its normalized name and its value."""
        schemes, file_ids, max_chars, find_host_problem = (
            self.schemes, self.file_ids, self.max_data_chars, self._host_check(),
        )  # fmt: skip
        shown_schemes = shorten(", ".join(schemes), 24) or "none"

        def find_problem(name: str, text: str) -> Problem | None:
            if name in FILE_IDS and not file_ids:
                return "file_id", "names a stored file; none is allowed."
            if ":" not in text and name in FILE_IDS:
                return None  # an id with a colon is checked as a URL, because some providers read it as one
            match = SCHEME.match(text)
            scheme = match[1].lower() if match else ""
            is_inline = name == FILE_DATA and (scheme == "data" or ":" not in text)
            if not is_inline and (match is None or scheme not in schemes):
                found = f"has the scheme '{shorten(scheme, 20)}'" if scheme else "has no scheme"
                return "scheme", f"{found}; allowed: {shown_schemes}."
            if is_inline or match is None or scheme == "data":
                found = f"has {len(text)} characters; the limit is {max_chars}."
                return ("data_too_long", found) if len(text) > max_chars else None
            return find_host_problem(text, match.end())

        return find_problem

    def _host_check(self) -> Callable[[str, int], Problem | None]:
        """Return the function that checks the host of a URL, given where its scheme ends."""
        allowed, denied, allows_private = compile_globs(self.hosts), compile_globs(self.deny_hosts), self.private

        def find_problem(url: str, scheme_end: int) -> Problem | None:
            try:
                authority = _authority(url, scheme_end)
                if "@" in authority:
                    return "userinfo", "has a name or password before its host; none is allowed."
                host, address = _parse_host(re.split("[?#]", authority, maxsplit=1)[0])
            except ValueError:
                return MALFORMED
            if not allows_private and not _is_public(host, address):
                return "private", f"names '{shorten(host, 20)}', which is not public; public hosts are allowed."
            if address is not None and str(address) != host:
                return MALFORMED
            if denied.match(host) or not allowed.match(host):
                return "host_not_allowed", f"names '{shorten(host, 20)}', which is not one of the allowed hosts."
            return None

        return find_problem


def _authority(url: str, scheme_end: int) -> str:
    """Return what is between the slashes, where every reader finds the host. Raises ValueError."""
    match = AUTHORITY.match(url, scheme_end)
    if match is None or len(url) > MAX_URL_CHARS or UNSAFE.search(url):
        raise ValueError(url[:MAX_HOST_CHARS])
    return match[1]


def _parse_host(authority: str) -> tuple[str, Address | None]:
    """Return the host, in lower case without a final dot, and the address that it is or that inet_aton(3) finds in it.

    Raises ValueError for anything else.
    """
    match = HOST.fullmatch(authority) if len(authority) <= MAX_HOST_CHARS else None
    if match is None:
        raise ValueError(authority[:MAX_HOST_CHARS])
    if match["six"]:
        six = IPv6Address(match["six"])
        return str(six), six
    name = match["name"].lower()
    return name, _parse_ipv4(name) if NUMBER.fullmatch(name.rpartition(".")[2]) else None


def _parse_ipv4(name: str) -> IPv4Address:
    """Parse one to four numbers, decimal, octal or hexadecimal; the last one fills the rest. Raises ValueError."""
    *high, low = [int(part, _base(part)) for part in name.split(".")]
    if len(high) > 3 or any(number > 255 for number in high) or low >= 256 ** (4 - len(high)):
        raise ValueError(name)
    return IPv4Address(sum(number << 24 - 8 * place for place, number in enumerate(high)) + low)


def _base(number: str) -> int:
    if number.startswith("0x"):
        return 16
    return 8 if number.startswith("0") else 10


def _is_public(host: str, address: Address | None) -> bool:
    if address is None:
        return "." in host and not f".{host}".endswith(PRIVATE_SUFFIXES)
    if isinstance(address, IPv6Address) and address not in GLOBAL_SIX:
        return False
    return address.is_global and not any(address in special for special in SPECIAL)
