"""Limits where images and files of the input may come from, because a provider fetches them from inside its network.

Request: checks every string of input, instructions and prompt under a name that ends in `url`, however it is written
    (image_url, imageUrl, an object {"url"}), under `file_data` and under `file_id`; of tools their image_url, file_url,
    file_data and file ids. Refuses with `scheme`, `malformed` (a URL in which two readers may find two hosts),
    `userinfo`, `private`, `host_not_allowed`, `data_too_long`, `file_id`, `too_many_values`; fields in which other
    protocols have the conversation (`messages` ...) with `alternative_field`. It does not check an MCP server_url (see
    `tools`), nor links and ids that only say where something came from (annotations, results, actions, current_url of
    a screenshot, outputs of a code interpreter).
    A host is checked by its name: single words, names inside clusters, and domains known to resolve to private
    addresses are `private`. With resolve = true it is also looked up: `private` if any address is, `unresolved` if it
    has none or none was found in time, `too_many_hosts` for more than 16 in one call. The provider fetches a URL, not
    the gateway: what a name resolves to there and then, or redirects to, is for the provider to check; `hosts` limits
    URLs to known names.
Response: passes.
Source: https://url.spec.whatwg.org/#concept-host-parser, and for addresses
    https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Self

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.alternatives import INPUT, alternatives_check
from policies.support.globs import compile_globs
from policies.support.hosts import is_public, is_public_address, parse_host
from policies.support.resolve import Resolver
from policies.support.urls import (
    AUTHORITY,
    FILE_DATA,
    FILE_IDS,
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
from proxy.wire.call import INPUT_OPERATIONS, Call, Operation
from proxy.wire.errors import PolicyViolation

Problem = tuple[str, str]  # the code of a refusal, and what follows the name of the field in its message
MALFORMED: Problem = ("malformed", "is no URL that all readers read alike; write https://host/path.")
HOST_GLOB = re.compile(r"[A-Za-z0-9_.*?-]+|[0-9A-Fa-f.*?]*:[0-9A-Fa-f.*?]*:[0-9A-Fa-f:.*?]*")
MAX_URL_CHARS = 65_536
MAX_HOSTS = 16


class InputUrls(Policy):
    operations: ClassVar[frozenset[Operation]] = INPUT_OPERATIONS

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
    resolve: bool = False
    """Whether hosts are looked up, and refused if one of their addresses is not public or they have none."""
    resolve_timeout_ms: PositiveInt = 2_000
    """How long the lookups of one call may take, in milliseconds; a host that is not found in time is refused."""

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

    @model_validator(mode="after")
    def _resolves_for_a_reason(self) -> Self:
        if self.resolve and self.private:
            raise ValueError("resolve refuses private addresses, and private = true allows them; set one of them")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        """A call is only waited for if it has hosts to be looked up; the walk of a large body is done in a thread."""
        del state
        find_problem, refuse_alternatives = self._reference_check(), alternatives_check(INPUT)
        resolver = Resolver(self.resolve_timeout_ms / 1000) if self.resolve else None

        def check(call: Call, context: Context) -> Call | Awaitable[Call]:
            refuse_alternatives(call.body, call.query)
            if not may_have_references(call.encoded):
                return call
            hosts: dict[str, str] = {}
            for path, name, text in references(call.body):
                if is_reference(path, name):
                    if (problem := find_problem(name, text)) is not None:
                        raise _violation(problem, path_of(path))
                    if resolver is not None and (host := _host_name(text)) is not None:
                        hosts.setdefault(host, path_of(path))
            return call if resolver is None or not hosts else _resolve(resolver, hosts, call, context)

        return Repeatable(check) if resolver is None else check  # what a name resolves to may change

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
                host, address = parse_host(re.split("[?#]", authority, maxsplit=1)[0])
            except ValueError:
                return MALFORMED
            if not allows_private and not is_public(host, address):
                return "private", f"names '{shorten(host, 20)}', which is not public; public hosts are allowed."
            if address is not None and str(address) != host:
                return MALFORMED
            if denied.match(host) or not allowed.match(host):
                return "host_not_allowed", f"names '{shorten(host, 20)}', which is not one of the allowed hosts."
            return None

        return find_problem


async def _resolve(resolver: Resolver, hosts: Mapping[str, str], call: Call, context: Context) -> Call:
    """Return the call if all its hosts, given with their places, have public addresses. Raises PolicyViolation."""
    if len(hosts) > MAX_HOSTS:
        found = f"The call names {len(hosts)} hosts; the limit is {MAX_HOSTS}."
        raise PolicyViolation("too_many_hosts", found, param="input")
    for host, addresses in (await resolver.addresses(hosts, context.caller.name)).items():
        if not addresses:
            found = f"names '{shorten(host, 20)}', which cannot be resolved; name a host in public DNS."
            raise _violation(("unresolved", found), hosts[host])
        if not all(map(is_public_address, addresses)):
            found = f"names '{shorten(host, 20)}', whose address is not public; public hosts are allowed."
            raise _violation(("private", found), hosts[host])
    return call


def _host_name(text: str) -> str | None:
    """Return the name in a URL that was checked; None for inline data, an id, and an address."""
    match = SCHEME.match(text)
    if match is None or match[1].lower() == "data":
        return None
    host, address = parse_host(re.split("[?#]", _authority(text, match.end()), maxsplit=1)[0])
    return host if address is None else None


def _violation(problem: Problem, where: str) -> PolicyViolation:
    return PolicyViolation(problem[0], f"{where} {problem[1]}", param=where)


def _authority(url: str, scheme_end: int) -> str:
    """Return what is between the slashes, where every reader finds the host. Raises ValueError."""
    match = AUTHORITY.match(url, scheme_end)
    if match is None or len(url) > MAX_URL_CHARS or UNSAFE.search(url):
        raise ValueError(url[:MAX_HOST_CHARS])
    return match[1]
