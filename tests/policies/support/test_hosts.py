"""Which hosts are public; tests/policies/test_input_urls.py has the notations of addresses."""

from ipaddress import ip_address

import pytest

from policies.support.hosts import PRIVATE_SUFFIXES, is_public, is_public_address, parse_host


@pytest.mark.parametrize("suffix", PRIVATE_SUFFIXES)
def test_a_private_suffix_covers_the_domain_and_all_names_below_it(suffix: str):
    """A name that only ends in the same letters is another one."""
    assert not is_public(suffix.removeprefix("."), None)
    assert not is_public(f"a.b{suffix}", None)
    assert is_public(f"{suffix.removeprefix('.')}.example.com", None)
    assert is_public(f"a.not-{suffix.removeprefix('.')}", None)


def test_suffixes_are_written_as_hosts_are_compared():
    """In lower case, with a dot before them, each once."""
    assert [suffix for suffix in PRIVATE_SUFFIXES if suffix != suffix.lower() or suffix[0] != "."] == []
    assert len(PRIVATE_SUFFIXES) == len(set(PRIVATE_SUFFIXES))


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", True), ("10.0.0.1", False), ("2606:4700::1111", True), ("fc00::1", False), ("fe80::1%eth0", False)],
)
def test_an_address_is_public_if_it_is_routed_on_the_internet(address: str, expected: bool):
    """The name does not matter then."""
    assert is_public_address(ip_address(address)) is expected
    assert is_public("localhost", ip_address(address)) is expected


def test_a_host_is_a_name_or_an_address():
    """In lower case, without a final dot and a port."""
    assert parse_host("Example.COM.:443") == ("example.com", None)
    assert parse_host("127.1") == ("127.1", ip_address("127.0.0.1"))
    assert parse_host("[::1]:80") == ("::1", ip_address("::1"))
    with pytest.raises(ValueError, match="exa mple"):
        parse_host("exa mple.com")
