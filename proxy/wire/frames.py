"""Frames of the WebSocket protocol, without I/O: bytes of a caller in, messages out.

No extension is negotiated, so messages are never compressed.

Source: https://www.rfc-editor.org/rfc/rfc6455
"""

from collections.abc import Iterable, Iterator
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


_TEXT_HEAD = bytes((FIN | TEXT, 126))  # before a length of two bytes
PART_BYTES = 131_072
"""A longer message is kept in parts of about this size, in bytes, and so is one that is sent."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, whole. `code` is the status of a close, NO_STATUS if it has none.

    A long one has its data in `parts`, and none in `data`: joining them takes time.
    """

    kind: Kind
    data: bytes
    code: int = NO_STATUS
    parts: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        return len(self.data) + sum(map(len, self.parts))


class FrameParser:
    """Collects the frames of one caller. A payload is unmasked as it arrives, so that no large one is at once."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes
        self._buffer = bytearray()
        self._head: _Head | None = None  # of the frame whose payload is being received
        self._opcode = CONTINUATION  # of the message whose first frames were received; CONTINUATION: none
        self._payload = bytearray()  # the end of what is kept of a message
        self._parts: list[bytes] = []  # what is kept before it
        self._parts_bytes = 0
        self._frames = 0  # of the message that are complete
        self._size = 0  # of these frames
        self._control = bytearray()  # the payload of a control frame

    @property
    def pending_bytes(self) -> int:
        """How many bytes are kept of a message that is not complete."""
        return self._parts_bytes + len(self._payload) + len(self._control) + len(self._buffer)

    def push(self, data: bytes) -> None:
        """Add what has arrived."""
        self._buffer += data

    def read(self, max_frames: int) -> tuple[list[Message], bool]:
        """Return the messages that the next frames complete, and whether more frames may be there.

        Short frames cost far more time than their bytes take to arrive, so a caller's are read in portions. Raises
        FrameError, after which nothing more can be read.
        """
        messages: list[Message] = []
        for _ in range(max_frames):
            head = self._next_frame()
            if head is None:
                return messages, False
            if (message := self._message(head)) is not None:
                messages.append(message)
        return messages, True

    def _next_frame(self) -> "_Head | None":
        """Take what there is of a frame; return its head when it is complete."""
        head = self._head = self._head or self._read_head()
        if head is None:
            return None
        taken = min(head.left, len(self._buffer))
        if taken:
            self._keep(head, _unmask(self._buffer[:taken], head.mask))
            del self._buffer[:taken]
            head.advance(taken)
        if head.left:
            return None
        self._head = None
        return head

    def _keep(self, head: "_Head", data: bytearray) -> None:
        if head.first & 0x0F >= CLOSE:
            self._control += data
            return
        self._payload += data
        if len(self._payload) >= PART_BYTES:
            self._parts.append(bytes(self._payload))
            self._parts_bytes += len(self._payload)
            self._payload = bytearray()

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

    def _message(self, head: "_Head") -> Message | None:
        """Return the message that this frame completes, if it does."""
        opcode = head.first & 0x0F
        if opcode >= CLOSE:
            payload, self._control = bytes(self._control), bytearray()
            return _close(payload) if opcode == CLOSE else Message(KINDS[opcode], payload)
        self._opcode = opcode or self._opcode
        self._frames += 1
        self._size += head.length
        if self._frames > MAX_FRAGMENTS:
            raise FrameError(TOO_BIG, f"The message has too many frames; the limit is {MAX_FRAGMENTS}.")
        if not head.first & FIN:
            return None
        kind, end = KINDS[self._opcode], bytes(self._payload)
        message = Message(kind, b"", parts=(*self._parts, end)) if self._parts else Message(kind, end)
        self._opcode, self._payload, self._parts, self._parts_bytes = CONTINUATION, bytearray(), [], 0
        self._frames = self._size = 0
        return message


class _Head:
    """A frame's first byte, how long its payload is, how much of that is still to come, and the mask of what comes."""

    __slots__ = ("first", "left", "length", "mask")

    def __init__(self, first: int, length: int, mask: bytes) -> None:
        self.first = first
        self.length = self.left = length
        self.mask = mask

    def advance(self, size: int) -> None:
        self.left -= size
        turn = size % 4
        self.mask = self.mask[turn:] + self.mask[:turn]


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
        if MAX_CONTROL_BYTES < size < 65_536:
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


def _frame(opcode: int, payload: bytes, *, is_last: bool = True) -> bytes:
    size, first = len(payload), FIN | opcode if is_last else opcode
    if size <= MAX_CONTROL_BYTES:
        return bytes((first, size)) + payload
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2) + payload
    return bytes((first, 127)) + size.to_bytes(8) + payload


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
