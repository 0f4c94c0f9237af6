"""Which keys of a document can be used, and for what."""

import base64

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from proxy.identity.key_set import MAX_KEYS, MAX_KEYS_TRIED, RSA, parse_key_set
from tests.oidc import private_key, public_jwk


def parse(*keys: object) -> list[tuple[str | None, frozenset[str]]]:
    return [(key.key_id, key.algorithms) for key in parse_key_set(orjson.dumps({"keys": keys})).keys]


def number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8)).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"])
def test_a_public_key_checks_what_its_kind_signs(algorithm: str):
    """Its own algorithm if it names one."""
    named, unnamed = public_jwk(algorithm, "a"), public_jwk(algorithm, "b")
    del unnamed["alg"]

    assert parse(named, unnamed) == [
        ("a", frozenset({algorithm})),
        ("b", RSA if algorithm in RSA else frozenset({algorithm})),
    ]


def small_rsa() -> dict:
    return RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)


RSA_KEY = public_jwk("RS256", "rsa")
UNUSABLE = {
    "a secret": {"kty": "oct", "k": number(2**256)},
    "a secret for RS256": {"kty": "oct", "k": number(2**256), "alg": "RS256"},
    "a private key": orjson.loads(RSAAlgorithm.to_jwk(private_key("RS256", "rsa"))),
    "for encryption": RSA_KEY | {"use": "enc"},
    "to sign": RSA_KEY | {"key_ops": ["sign"]},
    "another algorithm": RSA_KEY | {"alg": "HS256"},
    "an algorithm of another kind": RSA_KEY | {"alg": "ES256"},
    "an algorithm in a list": RSA_KEY | {"alg": ["RS256"]},
    "a name in a list": RSA_KEY | {"kid": ["rsa"]},
    "a short modulus": small_rsa(),
    "a long modulus": RSA_KEY | {"n": number(2**16_384 - 1)},
    "a large exponent": RSA_KEY | {"e": number(2**2047 + 1)},
    "the exponent 1": RSA_KEY | {"e": number(1)},
    "no modulus": {"kty": "RSA", "e": "AQAB"},
    "an unknown curve": public_jwk("ES256", "x") | {"crv": "secp256k1"},
    "a curve in a list": public_jwk("ES256", "x") | {"crv": ["P-256"]},
    "a point that is not on the curve": public_jwk("ES256", "x") | {"y": number(2**255 + 1)},
    "another kind": {"kty": "XYZ"},
    "no object": "key",
}


@pytest.mark.parametrize("key", UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_left_out(key: object):
    assert parse(key, RSA_KEY) == [("rsa", frozenset({"RS256"}))]
    with pytest.raises(ValueError, match="none of its 1 keys can be used"):
        parse(key)


def test_ten_thousand_keys_are_refused():
    with pytest.raises(ValueError, match=f"it has 10000 keys; at most {MAX_KEYS} are read"):
        parse(*[RSA_KEY] * 10_000)


def test_few_keys_are_tried_for_one_token():
    """Those with its name, or all of its kind if it has none."""
    keys = parse_key_set(orjson.dumps({"keys": [*[public_jwk("ES256", "same")] * 9, public_jwk("ES384", "other")]}))

    assert len(keys.find("same", "ES256")) == len(keys.find(None, "ES256")) == MAX_KEYS_TRIED
    assert [len(keys.find(*asked)) for asked in (("same", "ES384"), (None, "ES384"), ("absent", "ES256"))] == [0, 1, 0]
