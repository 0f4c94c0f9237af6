"""Frames of the WebSocket protocol as bytes, of a server and of a client.

Source: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
"""

import secrets
from collections.abc import Iterable, Iterator

from proxy.wire.frames import (
    CLOSE,
    CONTINUATION,
    FIN,
    MASKED,
    MAX_CONTROL_BYTES,
    NO_STATUS,
    PART_BYTES,
    PING,
    PONG,
    TEXT,
    WHOLE_TEXT,
    apply_mask,
)

_SHORT_HEADS = tuple(bytes((WHOLE_TEXT, size)) for size in range(MAX_CONTROL_BYTES + 1))
_TEXT_HEAD = bytes((WHOLE_TEXT, 126))  # before a length of two bytes


def text_frames(payload: bytes) -> Iterator[bytes]:
    """Yield the frames of a text message of a server: one, or for a long one several. The payload is UTF-8."""
    for start in range(0, max(1, len(payload)), PART_BYTES):
        is_last = start + PART_BYTES >= len(payload)
        yield _frame(CONTINUATION if start else TEXT, payload[start : start + PART_BYTES], is_last=is_last)


def short_frames(payloads: Iterable[bytes]) -> bytes:
    """Return the frames of text messages that are no longer than PART_BYTES, in one piece."""
    parts: list[bytes] = []
    for payload in payloads:
        size = len(payload)
        if size <= MAX_CONTROL_BYTES:
            parts += (_SHORT_HEADS[size], payload)
        elif size < 65_536:
            parts += (_TEXT_HEAD, size.to_bytes(2), payload)
        else:
            parts.append(_frame(TEXT, payload))
    return b"".join(parts)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return the frame that closes a connection; a long reason is cut."""
    payload = b"" if code == NO_STATUS else code.to_bytes(2) + reason.encode("ascii", "replace")
    return _frame(CLOSE, payload[:MAX_CONTROL_BYTES])


def ping_frame() -> bytes:
    return _frame(PING, b"")


def pong_frame(payload: bytes) -> bytes:
    return _frame(PONG, payload)


def masked_text(payload: bytes) -> Iterator[bytes]:
    """Yield the one frame of a text message of a client, in pieces of PART_BYTES. The payload is UTF-8."""
    mask = secrets.token_bytes(4)
    head = _masked_head(len(payload)) + mask
    for start in range(0, max(1, len(payload)), PART_BYTES):
        yield head + apply_mask(payload[start : start + PART_BYTES], mask)
        head = b""


def _masked_head(size: int) -> bytes:
    """Return how the frame of a text message of a client begins, without its mask."""
    head = bytearray(_head(WHOLE_TEXT, size))
    head[1] |= MASKED
    return bytes(head)


def masked_control(frame: bytes) -> bytes:
    """Return the control frame of a server as that of a client."""
    mask = secrets.token_bytes(4)
    return bytes((frame[0], frame[1] | MASKED)) + mask + apply_mask(frame[2:], mask)


def _frame(opcode: int, payload: bytes, *, is_last: bool = True) -> bytes:
    return _head(FIN | opcode if is_last else opcode, len(payload)) + payload


def _head(first: int, size: int) -> bytes:
    if size <= MAX_CONTROL_BYTES:
        return bytes((first, size))
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2)
    return bytes((first, 127)) + size.to_bytes(8)
