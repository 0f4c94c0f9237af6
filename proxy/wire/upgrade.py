"""The handshake with which a connection becomes a WebSocket: what proves that a server has understood it.

Source: https://www.rfc-editor.org/rfc/rfc6455#section-4
"""

import base64
import hashlib
import secrets

VERSION = "13"
KEY_BYTES, KEY_CHARS = 16, 24
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def new_key() -> str:
    """Return a key for one handshake of a client."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def accept_key(key: str) -> str:
    """Return what a client that sent this key expects."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
