"""Hosts of URLs: how they are parsed, and which of them are not public, by their notation and by their name."""

from ipaddress import IPv4Address, IPv6Address, ip_network

from policies.support.urls import HOST, MAX_HOST_CHARS, NUMBER

Address = IPv4Address | IPv6Address

# Only these are routed on the internet, except those that stand for something else: 6to4 and Teredo with an IPv4
# address inside, documentation, anycast relays, multicast, and addresses where clouds have their own services.
GLOBAL_SIX = ip_network("2000::/3")
SPECIAL = tuple(map(ip_network, (
    "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)))  # fmt: skip
# Reserved for use inside a network, and customary there.
# Source: https://www.iana.org/assignments/special-use-domain-names (localhost, local, home.arpa, test, invalid, alt),
# https://www.icann.org/en/board-activities-and-meetings/materials/approved-resolutions-29-07-2024 (internal),
# https://www.icann.org/resources/board-material/resolutions-2018-02-04-en#2.c (corp, home, mail)
RESERVED = (
    ".localhost", ".local", ".localdomain", ".internal", ".intranet", ".private", ".corp", ".lan", ".home", ".mail",
    ".home.arpa", ".test", ".invalid", ".alt",
)  # fmt: skip
# Names inside a cluster or a cloud, where a short name is completed: kubernetes.default, api.svc, db.service.consul.
# Source: https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#namespaces-of-services (and the
# namespaces of a new cluster), https://developer.hashicorp.com/consul/docs/services/discovery/dns-overview,
# https://github.com/m3scluster/mesos-dns, https://www.tencentcloud.com/document/product/213/4934
CLUSTER = (
    ".svc", ".pod", ".default", ".kube-system", ".kube-public", ".kube-node-lease", ".consul", ".mesos",
    ".metadata.tencentyun.com",
)  # fmt: skip
# Public domains that resolve to any address in the name, or to another one with each lookup.
# Source: https://nip.io, https://sslip.io, https://traefik.me, https://github.com/taviso/rbndr,
# https://github.com/neex/1u.ms, https://github.com/brannondorsey/whonow, https://local-ip.sh, https://backname.io
ANY_ADDRESS = (
    ".nip.io", ".sslip.io", ".xip.io", ".traefik.me", ".backname.io", ".local-ip.sh", ".local-ip.co", ".ipq.co",
    ".rbndr.us", ".1u.ms", ".rebind.network", ".rebind.it",
)  # fmt: skip
# Public domains that resolve to loopback, with all names below them.
# Source: https://readme.localtest.me, https://superuser.com/q/1280827, https://docs.lando.dev (lndo.site),
# https://ddev.readthedocs.io (ddev.site), https://get.localhost.direct, https://docs.localstack.cloud
LOOPBACK = (
    ".localtest.me", ".lvh.me", ".vcap.me", ".fuf.me", ".ulh.us", ".127-0-0-1.org.uk", ".ratchetlocal.com",
    ".smackaho.st", ".42foo.com", ".lacolhost.com", ".localhst.co.uk", ".localmachine.info", ".localmachine.name",
    ".localfabriek.nl", ".localho.st", ".local.gd", ".lndo.site", ".ddev.site", ".localhost.direct",
    ".localhost.localstack.cloud", ".localhost.domaincontrol.com", ".yoogle.com",
)  # fmt: skip
PRIVATE_SUFFIXES = RESERVED + CLUSTER + ANY_ADDRESS + LOOPBACK


def parse_host(authority: str) -> tuple[str, Address | None]:
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


def is_public(host: str, address: Address | None) -> bool:
    """Whether a host is public, as far as its name or notation says."""
    if address is None:
        return "." in host and not f".{host}".endswith(PRIVATE_SUFFIXES)
    return is_public_address(address)


def is_public_address(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in GLOBAL_SIX:
        return False
    return address.is_global and not any(address in special for special in SPECIAL)


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
