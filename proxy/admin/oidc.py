"""Signs operators in at an issuer: OIDC's authorization code flow with PKCE.

What belongs to one sign-in (state, nonce, verifier, where it leads to) is in a sealed cookie for ten minutes.

Source: https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth
Source: https://www.rfc-editor.org/rfc/rfc9700#section-2.1.1
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import structlog

from proxy.admin.entrances import Entrances, SignedIn
from proxy.admin.problem import Problem
from proxy.admin.sealer import Sealer
from proxy.config.admin_table import OidcTable
from proxy.http.key_fetch import address_in, asking, discover, fetch_keys, proxy_headers, read_whole
from proxy.identity.claims import compile_path, find
from proxy.identity.issuer_keys import KeysPending
from proxy.identity.issuer_table import IssuerTable
from proxy.identity.key_set import parse_document
from proxy.identity.sign_in import SignIn
from proxy.identity.tokens import read_token
from proxy.wire.errors import HeadgateError
from proxy.wire.loggable import printable

log = structlog.get_logger()

FLOW_S = 600.0
"""How long a sign-in may take, in seconds."""
CALLBACK = "/admin/oidc/callback"
NO_TEAM = "-"
"""The team of operators whose token names none."""
RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Redirection:
    """Where a browser is led to, and the sealed cookie that it brings back."""

    address: str
    cookie: str


class OidcSignIn:
    """Signs operators in at one issuer."""

    def __init__(self, settings: OidcTable, issuer: IssuerTable, entrances: Entrances) -> None:
        self._settings = settings
        self._entrances = entrances
        self._table = issuer.model_copy(
            update={"audience": settings.client_id, "default_team": issuer.default_team or NO_TEAM}
        )
        secret = settings.client_secret
        # With a secret of the client a sign-in may end at another gateway than it began at.
        self._sealer = Sealer("" if secret is None else secret.get_secret_value())
        self._role = compile_path(settings.role)
        self._tokens = SignIn(fetch_keys)

    @property
    def name(self) -> str:
        """Return the name of the issuer."""
        return self._table.name

    def start(self) -> None:
        """Fetch the issuer's keys from now on."""
        self._tokens.replace([self._table])

    async def close(self) -> None:
        """Fetch them no more."""
        await self._tokens.close()

    async def begin(self, own_address: str, goal: str) -> Redirection:
        """Return where a sign-in begins that leads to a path of the console. Raises Problem."""
        state, nonce, verifier = (secrets.token_urlsafe(RANDOM_BYTES) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code", "client_id": self._settings.client_id, "redirect_uri": f"{own_address}{CALLBACK}",
            "scope": self._settings.scope, "state": state, "nonce": nonce, "code_challenge": challenge,
            "code_challenge_method": "S256",
        }  # fmt: skip
        endpoint = await self._endpoint("authorization_endpoint")
        separator = "&" if "?" in endpoint else "?"
        flow = {"state": state, "nonce": nonce, "verifier": verifier, "goal": goal, "uri": asked["redirect_uri"]}
        return Redirection(f"{endpoint}{separator}{urlencode(asked)}", self._sealer.seal(flow, FLOW_S))

    async def finish(self, query: Mapping[str, str], cookie: str) -> tuple[SignedIn, str]:
        """Return who has signed in, and the path that this leads to. Raises Problem."""
        flow = self._sealer.unseal(cookie)
        if flow is None or "verifier" not in flow or not _equal(flow["state"], query.get("state", "")):
            raise Problem(403, "sign_in_expired", "This sign-in is over, or was begun elsewhere; begin it again.")
        if "error" in query or not query.get("code"):
            reason = printable(query.get("error", "no code"))
            raise Problem(403, "sign_in_refused", f"'{self.name}' has not signed you in: {reason}.")
        token = await self._exchange(query["code"], flow)
        claims = await self._claims_of(token)
        if not _equal(flow["nonce"], claims.get("nonce")):
            raise Problem(403, "sign_in_refused", "The token is of another sign-in.")
        return self._signed_in(token, claims), str(flow["goal"])

    async def _endpoint(self, name: str) -> str:
        try:
            async with asking(self._table) as session:
                return address_in(await discover(session, self._table), name, self._table)
        except (ValueError, OSError, TimeoutError) as error:
            raise self._unavailable(str(error)) from error

    async def _exchange(self, code: str, flow: Mapping[str, Any]) -> str:
        """Return the token for a code. Raises Problem."""
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": flow["uri"],
                  "code_verifier": flow["verifier"], "client_id": self._settings.client_id}  # fmt: skip
        if self._settings.client_secret is not None:
            fields["client_secret"] = self._settings.client_secret.get_secret_value()
        endpoint = await self._endpoint("token_endpoint")
        try:
            async with (
                asking(self._table) as session,
                session.post(
                    endpoint, data=fields, proxy_headers=proxy_headers(self._table), allow_redirects=False
                ) as answer,
            ):
                data = await read_whole(answer)
        except (aiohttp.ClientError, ValueError, OSError, TimeoutError) as error:
            raise self._unavailable(type(error).__name__) from error
        try:
            found = parse_document(data)
        except ValueError:
            found = None
        token = found.get("id_token") if isinstance(found, dict) else None
        if answer.status != 200 or not isinstance(token, str):
            log.warning("admin.sign_in_failed", issuer=self.name, status=answer.status)
            raise Problem(403, "sign_in_refused", f"'{self.name}' gives no token for this sign-in; begin it again.")
        return token

    async def _claims_of(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that holds. Raises Problem."""
        try:
            try:
                self._tokens.identify(token, hashlib.sha256(token.encode()).digest())
            except KeysPending as pending:
                await pending.wait()
                self._tokens.identify(token, hashlib.sha256(token.encode()).digest())
        except HeadgateError as error:
            raise Problem(403 if error.status < 500 else 503, error.code or "invalid_token", error.message) from error
        return read_token(token).claims

    def _signed_in(self, token: str, claims: Mapping[str, Any]) -> SignedIn:
        """Return whom claims let in. Raises Problem if they name no role."""
        caller = self._tokens.identify(token, hashlib.sha256(token.encode()).digest())
        value = find(claims, self._role)
        named = value if isinstance(value, list) else [value]
        entry = self._entrances.by_claim(caller.name, "" if caller.team == NO_TEAM else caller.team, named)
        if entry is None:
            message = "Your token names no role here, or no team for it; ask the operator of this gateway."
            raise Problem(403, "no_role", message)
        return entry

    def _unavailable(self, reason: str) -> Problem:
        log.warning("admin.sign_in_failed", issuer=self.name, reason=printable(reason))
        return Problem(503, "issuer_unavailable", f"'{self.name}' cannot be reached at the moment; try again later.")


def _equal(one: object, other: object) -> bool:
    """Whether two texts are the same; how long that takes says nothing of them."""
    return isinstance(one, str) and isinstance(other, str) and hmac.compare_digest(one.encode(), other.encode())
