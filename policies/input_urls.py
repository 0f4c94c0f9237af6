"""Bounds where images and files of the input may come from, before a provider fetches them from inside some network.

Request: judges every string of input, instructions and prompt that stands under a name ending in `url`, however it is
    written (image_url, imageUrl, an object {"url"}), under `file_data` and under `file_id`; of tools, their image_url,
    file_url, file_data and file ids. Refuses with `scheme`, `malformed` (what two readers may read as two hosts),
    `userinfo`, `private`, `host_not_allowed`, `data_too_long`, `file_id`, `too_many_values`. Not judged: an MCP
    server_url (see `tools`), links and ids that only tell where something came from (annotations, results, actions).
    A name is judged by its name: nothing is looked up here, as the provider fetches, not this gate. What a public name
    resolves or redirects to is for the provider to guard; `hosts` narrows it to names that you know.
Response: passes.
Source: https://url.spec.whatwg.org/#concept-host-parser, and for addresses
    https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_network

from pydantic import NonNegativeInt, field_validator
from pydantic_core import SchemaValidator, core_schema

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation

Step = str | int
Problem = tuple[str, str]  # the code of a refusal, and what follows the name of the field in its message
MALFORMED: Problem = ("malformed", "is no URL that everybody reads alike; write https://host/path.")
PLACES = ("input", "items", "instructions", "prompt", "tools")
# What stands under these tells where something came from, or is what a model said to a tool: no provider fetches it.
TOLD = frozenset({"action", "actions", "annotations", "arguments", "results", "sources"})
FILE_IDS = ("fileid", "fileids")
FILE_DATA = "filedata"
ENDINGS = ("url", *FILE_IDS, FILE_DATA)
# JSON with such a name, in whatever dress, holds one of these. Beside ASCII, a long s and ligatures fold to letters
# of theirs. pydantic's patterns look for all of them at once, in a tenth of the time of `re`.
ANY, JOINT = "[-_]*", "[-_]+"
URL = f'url{ANY}":|u{JOINT}r{ANY}l{ANY}":|ur{JOINT}l{ANY}":'
FILE = f'file{ANY}(?:i{ANY}d{ANY}s?|d{ANY}a{ANY}t{ANY}a){ANY}":|f{JOINT}i{ANY}l{ANY}e|fi{JOINT}l{ANY}e|fil{JOINT}e'
TELLTALE = core_schema.str_schema(pattern=f"(?i-u:{URL}|{FILE})|[\u017f\ufb00-\ufb06]")
told_by = SchemaValidator(core_schema.with_default_schema(TELLTALE, default=None, on_error="default")).validate_python
TEXTS = frozenset({"arguments", "call_id", "content", "description", "id", "name", "output", "role", "text", "type"})
CONTAINERS = (dict, list)
MOST_VALUES = 200_000  # what is walked through in a second

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
UNSAFE = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f]")
PLACE = re.compile(r"//([^/]+)")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>{LABEL}(?:\.{LABEL})*)\.?)(?::[0-9]{{1,5}})?")
GLOB = re.compile(r"[A-Za-z0-9_.*?-]+|[0-9A-Fa-f.*?]*:[0-9A-Fa-f.*?]*:[0-9A-Fa-f:.*?]*")
NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")
LONGEST_NAME, LONGEST_URL = 253, 65_536

# Routed in public are only these, and of them not what stands for something else: 6to4 and Teredo with the IPv4
# address inside, documentation, anycast relays, multicast, and addresses where clouds have their own services.
GLOBAL_SIX = ip_network("2000::/3")
SPECIAL = tuple(map(ip_network, (
    "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)))  # fmt: skip
PRIVATE_NAMES = (
    ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".private", ".corp", ".lan", ".home",
    ".home.arpa", ".svc", ".metadata.tencentyun.com",
    ".nip.io", ".sslip.io", ".xip.io", ".localtest.me", ".lvh.me",  # these resolve to any address that one asks for
)  # fmt: skip


class InputUrls(Policy):
    schemes: tuple[str, ...] = ("https", "data")
    """Schemes that a URL may have. "file" can never be one: it names files of whoever reads it."""
    hosts: tuple[str, ...] = ("*",)
    """Hosts that a URL may name, with * and ?; an empty list allows none. What is private stays so."""
    deny_hosts: tuple[str, ...] = ()
    """Hosts that it may not name, even if `hosts` has them."""
    private: bool = False
    """Whether it may name what is not public: loopback, private and link-local addresses, single words, .internal."""
    file_ids: bool = True
    """Whether files may be named by the ids under which an upstream keeps them."""
    max_data_chars: NonNegativeInt = 73_400_320
    """How long a data: URL or file_data may be, in characters."""

    @field_validator("schemes")
    @classmethod
    def _are_schemes(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        for scheme in schemes:
            if not SCHEME.fullmatch(f"{scheme}:"):
                raise ValueError(f"'{scheme}' is not the name of a scheme, such as https")
            if scheme.lower() == "file":
                raise ValueError("'file' cannot be allowed: it names files of whoever reads it")
        return tuple(scheme.lower() for scheme in schemes)

    @field_validator("hosts", "deny_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not GLOB.fullmatch(host):
                raise ValueError(f"'{host}' is not a host alone, such as images.example.com or *.example.com")
        return tuple(host.lower().removesuffix(".") for host in hosts)

    def judging(self) -> Judge:
        def judge(call: Call) -> Call:
            return self._judged(call) if may_refer(call.encoded) else call

        return judge

    def _judged(self, call: Call) -> Call:
        for path, name, text in references(call.body):
            if is_reference(path, name) and (problem := self._problem(name, text)) is not None:
                where = _where(path)
                raise PolicyViolation(problem[0], f"{where} {problem[1]}", param=where)
        return call

    def _problem(self, name: str, text: str) -> Problem | None:
        """Ids and inline files are no URLs, unless they have a colon: then some provider takes them for one."""
        if name in FILE_IDS and not self.file_ids:
            return "file_id", "names a stored file; none is allowed."
        if ":" not in text and name in FILE_IDS:
            return None
        match = SCHEME.match(text)
        scheme = match[1].lower() if match else ""
        inline = name == FILE_DATA and (scheme == "data" or ":" not in text)
        if not inline and (match is None or scheme not in self.schemes):
            found = f"has the scheme '{_short(scheme, 20)}'" if scheme else "has no scheme"
            return "scheme", f"{found}; allowed: {_short(', '.join(self.schemes), 24) or 'none'}."
        if inline or match is None or scheme == "data":
            told = f"holds {len(text)} characters; the limit is {self.max_data_chars}."
            return ("data_too_long", told) if len(text) > self.max_data_chars else None
        return self._problem_of_host(text, match.end())

    def _problem_of_host(self, url: str, after_scheme: int) -> Problem | None:
        try:
            authority = _authority(url, after_scheme)
            if "@" in authority:
                return "userinfo", "has a name or password before its host; none is allowed."
            host, address = _host(re.split("[?#]", authority, maxsplit=1)[0])
        except ValueError:
            return MALFORMED
        if not self.private and not _is_public(host, address):
            return "private", f"names '{_short(host, 20)}', which is not public; public ones are allowed."
        if address is not None and str(address) != host:
            return MALFORMED
        if _matches(host, self.deny_hosts) or not _matches(host, self.hosts):
            return "host_not_allowed", f"names '{_short(host, 20)}', which is not one of the allowed hosts."
        return None


def may_refer(encoded: bytes) -> bool:
    """False when no name in the JSON ends as those that are judged: telling it costs a tenth of walking through all."""
    return told_by(encoded) is not None


def references(body: Mapping[str, object]) -> Iterator[tuple[list[Step], str, str]]:
    """Each string of a request that may name a file or be one: the way to it, the plain name it stands under, itself.

    Raises PolicyViolation for a request of more values than can be judged while others wait.
    Takes memory by depth, and calls itself at none.
    """
    path: list[Step] = []
    opened = [("", _steps({place: body[place] for place in PLACES if place in body}))]
    left = MOST_VALUES
    while opened:
        outer, steps = opened[-1]
        for step, value in steps:
            if isinstance(value, str):
                if step not in TEXTS and (name := _name(step, outer)).endswith(ENDINGS):
                    yield [*path, step], name, value
            elif value and isinstance(value, CONTAINERS):
                left -= len(value)
                if left < 0:
                    found = f"The input has too many values to be judged; the limit is {MOST_VALUES}."
                    raise PolicyViolation("too_many_values", found, param=_where(path))
                path.append(step)
                opened.append((_name(step, outer), _steps(value)))
                break
        else:
            opened.pop()
            del path[-1:]


def _steps(value: Mapping[str, object] | list[object]) -> Iterator[tuple[Step, object]]:
    """In the order of names, so that one and the same refusal is told in whatever order they came."""
    return iter(enumerate(value)) if isinstance(value, list) else iter([(name, value[name]) for name in sorted(value)])


def _name(step: Step, outer: str) -> str:
    """The name that a value stands under, lists aside, as readers that overlook case and hyphens know it."""
    return outer if isinstance(step, int) else step.casefold().replace("_", "").replace("-", "")


def is_reference(path: Sequence[Step], name: str) -> bool:
    if path[:2] == ["prompt", "variables"]:
        path = path[3:]  # what variables are called says nothing of what is in them; a bare string is text
        if not path:
            return False
    told = not TOLD.isdisjoint(path)
    if name in FILE_IDS:
        return not told
    if name == "url":  # an object {"url"}: what it is the address of stands outside of it
        outside = [step for step in path[:-1] if isinstance(step, str) and step != "url"][-1:]
        name = "imageurl" if outside and _name(outside[0], "").endswith("url") else name
    if told or "tools" in path:
        return name in ("imageurl", "fileurl", FILE_DATA)
    return name != "serverurl"


def _authority(url: str, after_scheme: int) -> str:
    """What stands between the slashes: any reader finds its host in there. Raises ValueError."""
    place = PLACE.match(url, after_scheme)
    if place is None or len(url) > LONGEST_URL or UNSAFE.search(url):
        raise ValueError(url[:LONGEST_NAME])
    return place[1]


def _host(authority: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """The host, in lower case without a last dot, and the address that it is or that inet_aton(3) reads in it.

    Raises ValueError for what is neither.
    """
    match = HOST.fullmatch(authority) if len(authority) <= LONGEST_NAME else None
    if match is None:
        raise ValueError(authority[:LONGEST_NAME])
    if match["six"]:
        six = IPv6Address(match["six"])
        return str(six), six
    name = match["name"].lower()
    return name, _number(name) if NUMBER.fullmatch(name.rpartition(".")[2]) else None


def _number(name: str) -> IPv4Address:
    """One to four numbers, decimal, octal or hexadecimal, the last of which fills what is left. Raises ValueError."""
    *high, low = [int(part, _base(part)) for part in name.split(".")]
    if len(high) > 3 or any(number > 255 for number in high) or low >= 256 ** (4 - len(high)):
        raise ValueError(name)
    return IPv4Address(sum(number << 24 - 8 * place for place, number in enumerate(high)) + low)


def _base(number: str) -> int:
    if number.startswith("0x"):
        return 16
    return 8 if number.startswith("0") else 10


def _is_public(host: str, address: IPv4Address | IPv6Address | None) -> bool:
    if address is None:
        return "." in host and not f".{host}".endswith(PRIVATE_NAMES)
    if isinstance(address, IPv6Address) and address not in GLOBAL_SIX:
        return False
    return address.is_global and not any(address in special for special in SPECIAL)


def _matches(host: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(host, glob) for glob in globs)


def _where(path: Sequence[Step]) -> str:
    """The way to a value as errors of the protocol write it: input[0].content[1].image_url."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:40]}" for step in path[:40])
    where = _short("".join(steps).removeprefix("."), 36)
    return where if where.isprintable() else _short(ascii(where)[1:-1], 36)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "..."
