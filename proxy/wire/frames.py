"""Frames of the WebSocket protocol, without I/O: bytes of a caller in, messages out.

No extension is negotiated, so messages are never compressed.

Source: https://www.rfc-editor.org/rfc/rfc6455
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "binary", "close", "ping", "pong"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KINDS: dict[int, Kind] = {TEXT: "text", BINARY: "binary", CLOSE: "close", PING: "ping", PONG: "pong"}
FIN, RESERVED, MASKED = 0x80, 0x70, 0x80
MAX_CONTROL_BYTES = 125
GOING_AWAY, PROTOCOL_ERROR, NO_STATUS, POLICY, TOO_BIG, TRY_AGAIN = 1001, 1002, 1005, 1008, 1009, 1013
MAX_FRAGMENTS = 65_536
"""How many frames one message may have: each costs time and memory, however short it is."""


class FrameError(Exception):
    """A caller broke the protocol, or sent too much; `code` is what its connection is closed with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """One message, whole. `code` is the status of a close, NO_STATUS if it has none."""

    kind: Kind
    data: bytes
    code: int = NO_STATUS


class FrameParser:
    """Collects the frames of one caller. A payload is unmasked as it arrives, so that no large one is at once."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes
        self._buffer = bytearray()
        self._head: _Head | None = None  # of the frame whose payload is being received
        self._payload = bytearray()
        self._opcode = CONTINUATION  # of the message whose first frames were received; CONTINUATION: none
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def pending_bytes(self) -> int:
        """How many bytes are kept of a message that is not complete."""
        return self._size + len(self._payload) + len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are complete now. Raises FrameError, after which nothing more can be read."""
        self._buffer += data
        while (frame := self._next_frame()) is not None:
            if (message := self._message(*frame)) is not None:
                yield message

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Take what there is of a frame; return its first byte and its payload when it is complete."""
        head = self._head = self._head or self._read_head()
        if head is None:
            return None
        taken = min(head.left, len(self._buffer))
        if taken:
            self._payload += _unmask(self._buffer[:taken], head.mask)
            del self._buffer[:taken]
            head.advance(taken)
        if head.left:
            return None
        payload = bytes(self._payload)
        self._head, self._payload = None, bytearray()
        return head.first, payload

    def _read_head(self) -> "_Head | None":
        """Take the head of a frame from the buffer, if all of it is there. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        self._check_head(first, second)
        length, start = second & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
        if len(buffer) < start + 4:
            return None
        if start > 2:
            length = int.from_bytes(buffer[2:start])
        if first & 0x0F <= BINARY and self._size + length > self._limit:
            raise FrameError(TOO_BIG, f"The message is too large; the limit is {self._limit} bytes.")
        mask = bytes(buffer[start : start + 4])
        del buffer[: start + 4]
        return _Head(first, length, mask)

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & RESERVED or (opcode != CONTINUATION and opcode not in KINDS):
            raise FrameError(PROTOCOL_ERROR, "The frame has reserved bits or an unknown opcode.")
        if not second & MASKED:
            raise FrameError(PROTOCOL_ERROR, "The frame is not masked.")
        if opcode >= CLOSE and (not first & FIN or second & 0x7F > MAX_CONTROL_BYTES):
            raise FrameError(PROTOCOL_ERROR, "The control frame is fragmented or too long.")
        if opcode < CLOSE and (opcode == CONTINUATION) != (self._opcode != CONTINUATION):
            raise FrameError(PROTOCOL_ERROR, "The frame does not continue the message before it.")

    def _message(self, first: int, payload: bytes) -> Message | None:
        """Return the message that this frame completes, if it does."""
        opcode = first & 0x0F
        if opcode >= CLOSE:
            return _close(payload) if opcode == CLOSE else Message(KINDS[opcode], payload)
        if opcode != CONTINUATION:
            if first & FIN:
                return Message(KINDS[opcode], payload)
            self._opcode = opcode
        self._parts.append(payload)
        self._size += len(payload)
        if len(self._parts) > MAX_FRAGMENTS:
            raise FrameError(TOO_BIG, f"The message has too many frames; the limit is {MAX_FRAGMENTS}.")
        if not first & FIN:
            return None
        message = Message(KINDS[self._opcode], b"".join(self._parts))
        self._opcode, self._parts, self._size = CONTINUATION, [], 0
        return message


class _Head:
    """A frame's first byte, how much of its payload is still to come, and the mask of what comes next."""

    __slots__ = ("first", "left", "mask")

    def __init__(self, first: int, left: int, mask: bytes) -> None:
        self.first = first
        self.left = left
        self.mask = mask

    def advance(self, size: int) -> None:
        self.left -= size
        turn = size % 4
        self.mask = self.mask[turn:] + self.mask[:turn]


def text_frame(payload: bytes) -> bytes:
    """Return a text message as one frame of a server. The payload is UTF-8."""
    return _frame(TEXT, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return the frame that closes a connection; a long reason is cut."""
    payload = b"" if code == NO_STATUS else code.to_bytes(2) + reason.encode("ascii", "replace")
    return _frame(CLOSE, payload[:MAX_CONTROL_BYTES])


def ping_frame() -> bytes:
    return _frame(PING, b"")


def pong_frame(payload: bytes) -> bytes:
    return _frame(PONG, payload)


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size <= MAX_CONTROL_BYTES:
        return bytes((FIN | opcode, size)) + payload
    if size < 65_536:
        return bytes((FIN | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((FIN | opcode, 127)) + size.to_bytes(8) + payload


def _close(payload: bytes) -> Message:
    """Return a close. Raises FrameError for one with a code that must not be sent."""
    if not payload:
        return Message("close", b"")
    code = int.from_bytes(payload[:2])
    is_known = code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000
    if len(payload) == 1 or not is_known:
        raise FrameError(PROTOCOL_ERROR, "The close frame has no valid code.")
    return Message("close", payload[2:], code)


def _unmask(payload: bytearray, mask: bytes) -> bytearray:
    """Return what a caller masked: every fourth byte is combined with the same byte, which a table does at once."""
    unmasked = bytearray(len(payload))
    for position in range(4):
        unmasked[position::4] = payload[position::4].translate(_TABLES[mask[position]])
    return unmasked


_TABLES = [bytes([value ^ byte for value in range(256)]) for byte in range(256)]
