"""Authenticated encryption with keys that are derived from one secret: each purpose and owner has a key of its own.

    sealed  version (1 byte)  nonce (12 bytes)  AES-256-GCM ciphertext and tag

Source: https://www.rfc-editor.org/rfc/rfc5869 (HKDF), https://csrc.nist.gov/pubs/sp/800/38/d/final (GCM)
"""

import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = b"\x01"
NONCE_BYTES, KEY_BYTES, TAG_BYTES = 12, 32, 16


@dataclass(frozen=True, slots=True)
class Cipher:
    """Seals and opens values that are bound to a purpose and an owner, as bytes."""

    key: AESGCM
    bound: bytes

    def seal(self, data: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + self.key.encrypt(nonce, data, self.bound)

    def open(self, sealed: bytes) -> bytes | None:
        """Return the data in a sealed value; None for a value of another secret, purpose or owner."""
        if sealed[:1] != VERSION or len(sealed) < 1 + NONCE_BYTES + TAG_BYTES:
            return None
        try:
            return self.key.decrypt(sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :], self.bound)
        except InvalidTag:
            return None


def derive_key(secret: bytes, purpose: str, *owner: str) -> bytes:
    """Return a key of 32 bytes for a purpose and an owner. It says nothing of other keys of the same secret."""
    return HKDF(SHA256(), KEY_BYTES, salt=b"headgate sealing", info=bind(purpose, *owner)).derive(secret)


def bind(purpose: str, *owner: str) -> bytes:
    """Return the associated data of a value: each part with its length before it."""
    parts = [VERSION, *(part.encode(errors="surrogatepass") for part in (purpose, *owner))]
    return b"".join(len(part).to_bytes(8) + part for part in parts)
