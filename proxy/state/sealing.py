"""Authenticated encryption of what callers or a store keep for the gateway: only the gateway can read or write it.

A sealed value is bound to a purpose and a team: it opens for no other. The key of each pair is derived from one secret,
that of [state], or a random one that the store keeps for all processes that share it.

A sealed text is a value of ciphers.py in URL-safe Base64 without padding.
"""

import base64
import binascii
import secrets

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from proxy.ciphers import KEY_BYTES, VERSION, Cipher, bind, derive_key
from proxy.stores import LONGEST_S, Store, StoreError
from proxy.wire.errors import Unavailable

log = structlog.get_logger()

STORED_SECRET = "headgate:secret"  # noqa: S105  the key under which the store has it
MAX_KEYS = 1024  # derived keys that are kept in memory


class Sealing:
    """Seals values and opens them. Without a secret in the config the store has a random one."""

    def __init__(self, secret: SecretStr | None, store: Store) -> None:
        self._secret = None if secret is None else secret.get_secret_value().encode()
        self._store = store
        self._is_generated = secret is None
        self._keys: dict[tuple[str, str], AESGCM] = {}

    async def start(self) -> None:
        """Read the secret, if only the store has it. A store that fails is asked again later."""
        if not self._is_generated:
            return
        try:
            await self._read_secret()
        except Unavailable as error:
            log.warning("state.secret_unavailable", code=error.code)

    async def seal(self, data: bytes, *, purpose: str, team: str) -> str:
        """Return the data as a text that only `open` with the same purpose and team can read. Raises Unavailable."""
        sealed = (await self.cipher(purpose, team)).seal(data)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    async def open(self, text: str, *, purpose: str, team: str) -> bytes | None:
        """Return the data in a sealed text; None for a text of another gateway, purpose or team. Raises Unavailable."""
        try:
            sealed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return None
        if sealed[:1] != VERSION:
            return None  # without reading a secret from the store
        return (await self.cipher(purpose, team)).open(sealed)

    async def cipher(self, purpose: str, team: str) -> Cipher:
        """Return the cipher of this purpose and team. Raises Unavailable."""
        return Cipher(await self._key(purpose, team), bind(purpose, team))

    async def _key(self, purpose: str, team: str) -> AESGCM:
        key = self._keys.get((purpose, team))
        if key is None:
            secret = self._secret or await self._read_secret()
            if len(self._keys) >= MAX_KEYS:
                self._keys.clear()
            self._keys[purpose, team] = key = AESGCM(derive_key(secret, purpose, team))
        return key

    async def _read_secret(self) -> bytes:
        """Return the secret in the store; the first process that needs one makes it, and warns. Raises Unavailable."""
        try:
            own = secrets.token_bytes(KEY_BYTES)
            if await self._store.put(STORED_SECRET, own, ttl_s=LONGEST_S, if_absent=True):
                log.warning(
                    "state.secret_generated",
                    consequence="compacted conversations cannot be read once [state] loses its data; set its secret",
                )
            self._secret = await self._store.get(STORED_SECRET)
        except StoreError as error:
            message = "The key of sealed values cannot be read at the moment."
            raise Unavailable(message, code="state_unavailable") from error
        if self._secret is None:
            raise Unavailable("The store kept no key for sealed values.", code="state_unavailable")
        return self._secret
