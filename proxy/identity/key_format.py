"""The format of issued keys: `hg_`, 256 random bits, and a checksum that detects typing errors."""

import hashlib
import secrets
import string
import zlib

PREFIX = "hg_"
DIGITS = string.digits + string.ascii_letters  # a double click selects all of a key
SECRET_CHARS = 43  # 62**43 > 2**256
CHECKSUM_CHARS = 6  # 62**6 > 2**32
KEY_CHARS = len(PREFIX) + SECRET_CHARS + CHECKSUM_CHARS
ID_BYTES = 6


def make_key() -> str:
    """Return a new key."""
    key = PREFIX + _in_base_62(int.from_bytes(secrets.token_bytes(32)), SECRET_CHARS)
    return key + _checksum(key)


def has_valid_checksum(key: str) -> bool:
    """Return whether a key has a valid checksum, so that some gateway may have issued it."""
    split = KEY_CHARS - CHECKSUM_CHARS
    return len(key) == KEY_CHARS and key.startswith(PREFIX) and _checksum(key[:split]) == key[split:]


def digest_of_key(key: str) -> bytes:
    """Return the SHA-256 of a key; the key itself is not kept."""
    return hashlib.sha256(key.encode()).digest()


def id_of_key(digest: bytes) -> str:
    """Return the id of a key, which anyone who finds the key can compute."""
    return f"key_{digest[:ID_BYTES].hex()}"


def _checksum(text: str) -> str:
    return _in_base_62(zlib.crc32(text.encode()), CHECKSUM_CHARS)


def _in_base_62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(DIGITS))
        digits.append(DIGITS[digit])
    return "".join(reversed(digits))
