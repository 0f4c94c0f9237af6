"""A JSON Web Key Set -> the public keys with which signatures can be checked. Source: RFC 7517, RFC 8725.

Keys that cannot be used are left out: secret and private ones, those for encryption, unknown curves, unusual sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

from proxy.wire.bounds import has_more_values

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
"""All are asymmetric: `none` needs no key, and a secret that both sides have lets the one that checks sign as well."""

MAX_VALUES = 100_000
"""How many values a document may have, which may be parsed in the event loop's thread: real ones have hundreds."""
MAX_KEYS = 256
MAX_KEYS_TRIED = 4
"""How many keys are tried for a token that names none of them, or one of several with the same name."""
RSA_BITS = range(2048, 8193)
MAX_RSA_CHARS = 1400
MAX_EXPONENT_CHARS = 6
"""The work of a check grows with the exponent: 65537, in three bytes, is what is in use."""
RSA = frozenset(name for name in ALGORITHMS if name[:2] in ("RS", "PS"))
BY_CURVE: Mapping[tuple[str, str], frozenset[str]] = {
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}
RENAMED = {"Ed25519": "EdDSA"}
"""Names of RFC 9864, in `alg` of a key."""
_BY_NAME = get_default_algorithms()


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and the algorithms of the signatures that it may check."""

    key_id: str | None
    algorithms: frozenset[str]
    key: Any


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of an issuer."""

    keys: Sequence[VerificationKey]

    @property
    def names(self) -> frozenset[str | None]:
        """The names of its keys; None: a key without one."""
        return frozenset(key.key_id for key in self.keys)

    def find(self, key_id: str | None, algorithm: str) -> Sequence[VerificationKey]:
        """Return the keys that may have signed a token, all if it does not name one; empty if there is none."""
        found = [key for key in self.keys if algorithm in key.algorithms and key_id in (key.key_id, None)]
        return found[:MAX_KEYS_TRIED]


def parse_key_set(data: bytes) -> KeySet:
    """Return the usable keys of a document. Raises ValueError for what is no key set, or has none."""
    try:
        document = parse_document(data)
    except ValueError as error:
        raise ValueError(f"it {error}") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it has no list of keys")  # noqa: TRY004  the document is at fault, not the program
    if len(listed) > MAX_KEYS:
        raise ValueError(f"it has {len(listed)} keys; at most {MAX_KEYS} are read")
    keys = [key for each in listed if isinstance(each, dict) and (key := _usable(each)) is not None]
    if not keys:
        raise ValueError(f"none of its {len(listed)} keys can be used")
    return KeySet(keys)


def parse_document(data: bytes) -> Any:
    """Return the value of a document of an issuer. Raises ValueError for what is no JSON, or has too many values."""
    if has_more_values(data, MAX_VALUES):
        raise ValueError(f"has more than {MAX_VALUES} values")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON") from None


def _usable(written: Mapping[str, Any]) -> VerificationKey | None:
    kind, key_id = written.get("kty"), written.get("kid")
    algorithms = RSA if kind == "RSA" else BY_CURVE.get((str(kind), str(written.get("crv"))), frozenset())
    if "d" in written or not isinstance(key_id, str | None) or not _is_for_signatures(written):
        return None
    if (own := written.get("alg")) is not None:
        algorithms = algorithms & {RENAMED.get(str(own), str(own))}
    if not algorithms or (kind == "RSA" and not _is_short(written)):
        return None
    try:
        key = _BY_NAME[min(algorithms)].from_jwk(dict(written))
    except (PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and (key.key_size not in RSA_BITS or key.public_numbers().e < 3):
        return None
    return VerificationKey(key_id, algorithms, key)


def _is_for_signatures(written: Mapping[str, Any]) -> bool:
    use, operations = written.get("use", "sig"), written.get("key_ops", ["verify"])
    return use == "sig" and isinstance(operations, list) and "verify" in operations


def _is_short(written: Mapping[str, Any]) -> bool:
    """Whether an RSA key has numbers of the usual size, so that no check takes long."""
    modulus, exponent = written.get("n"), written.get("e")
    return (
        isinstance(modulus, str)
        and isinstance(exponent, str)
        and len(modulus) <= MAX_RSA_CHARS
        and len(exponent) <= MAX_EXPONENT_CHARS
    )
