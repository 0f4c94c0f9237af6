"""The faults of an [[issuer]], each with the path of its key."""

import orjson
import pytest

from proxy.config.build import build
from tests.configs import config_with, fault
from tests.oidc import public_jwk

TABLE = {"name": "corp", "url": "https://login.example.com", "audience": "headgate", "team": "groups"}


def tables(*issuers: dict) -> dict:
    return {**config_with(), "issuer": [{**TABLE, **issuer} for issuer in issuers]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"adience": "x"}, "issuer[0].adience: unknown key; did you mean audience?"),
        ({"url": "http://login.example.com"}, "issuer[0].url: an address is https://HOST/..."),
        ({"url": "https://user@login.example.com"}, "issuer[0].url: an address is"),
        ({"url": "https://login.example.com?x=1"}, "issuer[0].url: an address is"),
        ({"url": "https://"}, "issuer[0].url: an address is"),
        ({"jwks_url": "ftp://x/keys"}, "issuer[0].jwks_url: an address is"),
        ({"audience": []}, "issuer[0].audience: "),
        ({"audience": ""}, "issuer[0].audience: "),
        ({"caller": "a..b"}, 'issuer[0].caller: a claim is written as sub, groups[0] or "kubernetes.io".namespace'),
        ({"caller": ""}, 'issuer[0]: caller: name a claim, such as "sub"'),
        ({"team": ""}, "issuer[0]: give the claim that names the team as `team`, or one team for all as `default_team`"),
        ({"team": "", "default_team": "a", "teams": {"x": "y"}}, "issuer[0]: `teams` needs the claim"),
        ({"teams": {"x": ""}}, "issuer[0]: teams: a team has 1 to 128 printable characters"),
        ({"tags": {"a b": "sub"}}, "issuer[0].tags"),
        ({"tags": {"a": "sub["}}, "issuer[0].tags: a claim is written as"),
        ({"require": {"sub[": "a"}}, "issuer[0].require: a claim is written as"),
        ({"algorithms": ["HS256"]}, "issuer[0].algorithms[0]: Input should be 'RS256'"),
        ({"algorithms": ["none"]}, "issuer[0].algorithms[0]: Input should be 'RS256'"),
        ({"algorithms": []}, "issuer[0].algorithms: "),
        ({"ca_file": "/absent/ca.pem"}, "issuer[0].ca_file: the file cannot be read: No such file or directory"),
        ({"jwks_file": "/absent/keys.json"}, "issuer[0].jwks_file: the file cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_fault_names_its_key(changed: dict, message: str):
    assert message in fault(tables(changed))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "issuer[1].name: issuer[0] has it too; one may have several audiences, in a list"),
        ({"name": "b"}, "issuer[1].url: issuer[0] has it too; one may have several audiences, in a list"),
        ({"name": "b", "url": "https://b.example"}, 'issuer[1].caller_prefix: issuer[0] has the same; a subject is unique within its issuer only, so give each a prefix of its own, such as "b:"'),
    ],
)  # fmt: skip
def test_subjects_of_two_issuers_are_kept_apart(other: dict, message: str):
    assert fault(tables({}, other)) == message


def test_a_gateway_with_an_issuer_is_closed_and_has_teams():
    config = build(tables({"url": "http://localhost:9000", "require": {"hd": ["a.example", "b.example"]}}))

    assert (config.is_open, config.has_teams, config.unknown_ids) == (False, True, "deny")


@pytest.mark.parametrize(("text", "message"), [("{}", "it has no list of keys"), ("[", "it is no JSON"), ('{"keys": [7, {"kty": "oct", "k": "AA"}]}', "none of its 2 keys can be used")])  # fmt: skip
def test_a_file_without_keys_is_refused(tmp_path, text: str, message: str):
    (tmp_path / "keys.json").write_text(text)

    assert fault(tables({"jwks_file": str(tmp_path / "keys.json")})) == f"issuer[0].jwks_file: {message}"


def test_a_file_of_keys_needs_no_address(tmp_path):
    (tmp_path / "keys.json").write_bytes(orjson.dumps({"keys": [public_jwk("ES256", "first")]}))
    table = {"jwks_file": str(tmp_path / "keys.json")}

    assert build(tables(table)).issuers[0].jwks_file is not None
    assert "with `jwks_file` nothing is fetched" in fault(tables({**table, "jwks_url": "https://x/keys"}))
