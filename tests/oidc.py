"""An OIDC provider: it signs tokens, publishes its keys, and fails in the ways in which providers fail."""

import asyncio
import base64
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import jwt
import orjson
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "headgate"


@cache
def private_key(algorithm: str, name: str = "") -> Any:
    """Return a key for signatures of this kind, another one for each name."""
    del name
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        return ec.generate_private_key(
            {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}[algorithm]()
        )
    return rsa.generate_private_key(65537, 2048)


def public_jwk(algorithm: str, name: str, **more: Any) -> dict[str, Any]:
    """Return the public part of a key as a provider publishes it."""
    kind = OKPAlgorithm if algorithm == "EdDSA" else ECAlgorithm if algorithm.startswith("ES") else RSAAlgorithm
    jwk = kind.to_jwk(private_key(algorithm, name).public_key(), as_dict=True)
    return {"kid": name, "use": "sig", "alg": algorithm, **jwk} | more


class Provider:
    """A provider on loopback. `answers` replaces what a path is answered with; `keys` are what it publishes."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.keys: list[dict[str, Any]] = [public_jwk("ES256", "first")]
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.proceed = asyncio.Event()
        self.address = ""
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0)
        await self._runner.setup()
        await self.start()
        return self

    async def start(self) -> None:
        """Listen, on the port that it had before if it had one."""
        port = int(self.address.rpartition(":")[2]) if self.address else 0
        self._site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls)
        await self._site.start()
        scheme = "http" if self._tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Refuse connections."""
        await self._site.stop()

    async def __aexit__(self, *_: object) -> None:
        self.proceed.set()
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.path, request.headers.get("Authorization")))
        answer = self.answers.get(request.path, self._regular(request.path))
        if callable(answer):
            return await answer(request)
        return web.Response(body=answer if isinstance(answer, bytes) else orjson.dumps(answer))

    def _regular(self, path: str) -> Any:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.address, "jwks_uri": f"{self.address}/keys"}
        return {"keys": self.keys}

    async def hang(self, _: web.BaseRequest) -> web.StreamResponse:
        """Answer when the test says so."""
        await self.proceed.wait()
        return web.Response(status=503)

    def table(self, **more: Any) -> dict[str, Any]:
        """Return an [[issuer]] that accepts its tokens."""
        return {"name": "corp", "url": self.address, "audience": AUDIENCE, "team": "team"} | more

    def claims(self, **more: Any) -> dict[str, Any]:
        """Return the claims of a valid token; None leaves one out."""
        now = int(time.time())
        claims = {"iss": self.address, "sub": "ada", "aud": AUDIENCE, "team": "search", "iat": now, "exp": now + 600}
        return {name: value for name, value in (claims | more).items() if value is not None}

    def token(self, name: str = "first", algorithm: str = "ES256", headers: Mapping[str, Any] | None = None, **claims: Any) -> str:  # fmt: skip
        """Return a signed token."""
        return self.sign(orjson.dumps(self.claims(**claims)), name, algorithm, headers)

    def sign(self, payload: bytes, name: str = "first", algorithm: str = "ES256", headers: Mapping[str, Any] | None = None) -> str:  # fmt: skip
        """Return any text, signed; a header that is None is left out."""
        header = {"typ": "JWT", "alg": algorithm, "kid": name, **(headers or {})}
        signed = f"{segment({key: value for key, value in header.items() if value is not None})}.{segment(payload)}"
        scheme = jwt.get_algorithm_by_name(algorithm)
        return f"{signed}.{segment(scheme.sign(signed.encode(), private_key(algorithm, name)))}"


def segment(value: object) -> str:
    """Return a part of a token."""
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
