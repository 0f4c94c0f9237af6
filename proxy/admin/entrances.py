"""The ways in which operators sign in, by a key of the config or at an issuer, and whether a sign-in is still valid."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.admin.roles import Operator
from proxy.config.admin_table import AdminTable, OidcRole, OidcTable

GLOBAL_VIEWER = "global_viewer"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """An operator who is signed in, and the proof of it."""

    operator: Operator
    secret: bytes
    """What sessions are signed with: another one when the key, or the client of the issuer, is replaced."""
    team: str = ""
    """The team that the token names."""
    claim: str = ""
    """The value of the claim that named the role; empty: a key of the config."""

    @property
    def fields(self) -> dict[str, str]:
        """Return the fields that are kept, to compare the sign-in with the config later."""
        return {"name": self.operator.name, "team": self.team, "claim": self.claim}


class Entrances:
    """Signs operators in by the current config."""

    def __init__(self, settings: AdminTable) -> None:
        self._oidc = settings.oidc
        self._keys = [
            (hashlib.sha256(key.key.get_secret_value().encode()).digest(), Operator(key.name, key.role, key.team))
            for key in settings.key
        ]

    @property
    def has_keys(self) -> bool:
        """Whether there is a key of an operator."""
        return bool(self._keys)

    @property
    def is_needed(self) -> bool:
        """Whether operators have to sign in."""
        return self.has_keys or self._oidc is not None

    def by_key(self, key: str) -> SignedIn | None:
        """Return the operator with this key, in constant time."""
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        found = [SignedIn(operator, known) for known, operator in self._keys if hmac.compare_digest(known, digest)]
        return found[0] if found else None

    def by_claim(self, name: str, team: str, values: list[Any]) -> SignedIn | None:
        """Return whom a token lets in whose claim has these values; None if they name no role, or no team for it."""
        if self._oidc is None:
            return None
        claim = next((wanted for wanted in self._oidc.roles if wanted in values), None)
        operator = None if claim is None else _operator(name, team, self._oidc.roles[claim])
        return None if operator is None else SignedIn(operator, _secret_of(self._oidc), team, claim or "")

    def again(self, fields: Mapping[str, str], proof: str, signed: bytes) -> Operator | None:
        """Return who was let in, with the role of now; None if a key, a claim or its role is gone.

        `proof` is what `sign` has made of `signed` at that time.
        """
        name, claim = fields["name"], fields["claim"]
        if claim:
            role = None if self._oidc is None else self._oidc.roles.get(claim)
            if self._oidc is None or role is None or not _is_proof(_secret_of(self._oidc), signed, proof):
                return None
            return _operator(name, fields["team"], role)
        named = [pair for pair in self._keys if pair[1].name == name]
        return next((operator for secret, operator in named if _is_proof(secret, signed, proof)), None)


def sign(secret: bytes, text: bytes) -> str:
    """Return what proves that who wrote a text had a secret."""
    return hmac.digest(secret, b"operator-session\0" + text, "sha256").hex()


def _is_proof(secret: bytes, text: bytes, proof: str) -> bool:
    return hmac.compare_digest(sign(secret, text).encode(), proof.encode(errors="surrogatepass"))


def _operator(name: str, team: str, role: OidcRole) -> Operator | None:
    """Return an operator of an issuer; None if the role is limited to a team, and there is none."""
    if role in ("owner", GLOBAL_VIEWER):
        return Operator(name, "owner" if role == "owner" else "viewer")
    return Operator(name, "team_admin" if role == "team_admin" else "viewer", team) if team else None


def _secret_of(settings: OidcTable) -> bytes:
    secret = "" if settings.client_secret is None else settings.client_secret.get_secret_value()
    return hashlib.sha256(f"{settings.issuer}\0{settings.client_id}\0{secret}".encode()).digest()
