"""Frames of the WebSocket protocol, without I/O: bytes of the peer in, messages out.

No extension is negotiated, so messages are never compressed. `frame_bytes.py` has the way back.

Source: https://www.rfc-editor.org/rfc/rfc6455
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "binary", "close", "ping", "pong"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KINDS: dict[int, Kind] = {TEXT: "text", BINARY: "binary", CLOSE: "close", PING: "ping", PONG: "pong"}
FIN, RESERVED, MASKED = 0x80, 0x70, 0x80
WHOLE_TEXT = FIN | TEXT
MAX_CONTROL_BYTES = 125
GOING_AWAY, PROTOCOL_ERROR, NO_STATUS, INVALID_TEXT, POLICY, TOO_BIG, TRY_AGAIN = (
    1001, 1002, 1005, 1007, 1008, 1009, 1013,
)  # fmt: skip
_LENGTH_OF_TWO_BYTES = 126
MAX_FRAGMENTS = 65_536
"""How many frames one message may have: each costs time and memory, however short it is."""


class FrameError(Exception):
    """The peer broke the protocol, or sent too much; `code` is the status with which its connection is closed."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


MAX_TEXTS = 2048
"""How many short messages are read at once: each costs time, however short it is."""
PART_BYTES = 131_072
"""A longer message is kept in parts of about this size, in bytes, and so is one that is sent."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, whole. `code` is the status of a close, NO_STATUS if it has none.

    A long one has its data in `parts`, and none in `data`: joining them takes time. `join_pieces` empties the list.
    """

    kind: Kind
    data: bytes
    code: int = NO_STATUS
    parts: list[bytes] | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data) + sum(map(len, self.parts or ()))


class FrameParser:
    """Collects the frames of one peer. A payload is unmasked as it arrives, so that no large one is at once."""

    def __init__(self, max_message_bytes: int, *, is_masked: bool = True) -> None:
        """`is_masked` is whether the peer masks its frames, as clients must and servers must not."""
        self._limit = max_message_bytes
        self._is_masked = is_masked
        self._data = b""  # what has arrived and is not read ...
        self._position = 0  # ... from here on
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
        """The bytes held of unread data and of an incomplete message."""
        unread_bytes = len(self._data) - self._position
        return self._parts_bytes + len(self._payload) + len(self._control) + unread_bytes

    def push(self, data: bytes) -> None:
        """Add received data."""
        self._data = self._data[self._position :] + data if self._position < len(self._data) else data
        self._position = 0

    def read(self, max_frames: int) -> tuple[list[Message], bool]:
        """Return the messages that the next frames complete, and whether more frames may be there.

        Short frames cost far more time than their bytes take to arrive, so a peer's are read in portions. Raises
        FrameError, after which nothing more can be read.
        """
        messages: list[Message] = []
        for _ in range(max_frames):
            head = self._next_frame()
            if head is None:
                self._data, self._position = self._data[self._position :], 0
                return messages, False
            if (message := self._message(head)) is not None:
                messages.append(message)
        return messages, True

    def read_short_texts(self, max_bytes: int) -> list[bytes]:
        """Return the payloads of the text messages that come next, as long as each is one whole frame without a mask.

        Those are nearly all that a server sends, so they cost as little as possible. A payload of 64 KiB or more is
        left for later, and so is what follows about `max_bytes` or MAX_TEXTS.
        """
        if self._head is not None or self._opcode != CONTINUATION:
            return []
        data, position, limit = self._data, self._position, self._limit
        payloads: list[bytes] = []
        available = len(data)
        last = min(available - 3, position + max_bytes)  # a length of two bytes can be read before it
        for _ in range(MAX_TEXTS):
            if position >= last or data[position] != WHOLE_TEXT:
                break
            length, start = data[position + 1], position + 2
            if length == _LENGTH_OF_TWO_BYTES:
                length, start = data[start] << 8 | data[position + 3], position + 4
            elif length > MAX_CONTROL_BYTES:
                break
            end = start + length
            if end > available or length > limit:
                break
            payloads.append(data[start:end])
            position = end
        self._position = position
        return payloads

    def _next_frame(self) -> "_Head | None":
        """Take what there is of a frame; return its head when it is complete."""
        head = self._head = self._head or self._read_head()
        if head is None:
            return None
        start = self._position
        taken = min(head.left, len(self._data) - start)
        if taken:
            received = self._data[start : start + taken]
            self._keep(head, apply_mask(received, head.mask) if self._is_masked else received)
            self._position += taken
            head.advance(taken)
        if head.left:
            return None
        self._head = None
        return head

    def _keep(self, head: "_Head", data: bytes | bytearray) -> None:
        if head.first & 0x0F >= CLOSE:
            self._control += data
            return
        self._payload += data
        if len(self._payload) >= PART_BYTES:
            self._parts.append(bytes(self._payload))
            self._parts_bytes += len(self._payload)
            self._payload = bytearray()

    def _read_head(self) -> "_Head | None":
        """Take the head of a frame, if all of it is there. Raises FrameError."""
        data, at = self._data, self._position
        available = len(data) - at
        if available < 2:
            return None
        first, second = data[at], data[at + 1]
        self._check_head(first, second)
        length, size = second & 0x7F, 2
        if length >= _LENGTH_OF_TWO_BYTES:
            size = 4 if length == _LENGTH_OF_TWO_BYTES else 10
        mask_size = 4 if self._is_masked else 0
        if available < size + mask_size:
            return None
        if size > 2:
            length = int.from_bytes(data[at + 2 : at + size])
        if first & 0x0F <= BINARY and self._size + length > self._limit:
            raise FrameError(TOO_BIG, f"The message is too large; the limit is {self._limit} bytes.")
        self._position = at + size + mask_size
        return _Head(first, length, data[at + size : self._position])

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & RESERVED or (opcode != CONTINUATION and opcode not in KINDS):
            raise FrameError(PROTOCOL_ERROR, "The frame has reserved bits or an unknown opcode.")
        if bool(second & MASKED) != self._is_masked:
            raise FrameError(PROTOCOL_ERROR, f"The frame is {'not ' if self._is_masked else ''}masked.")
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
        message = Message(kind, b"", parts=[*self._parts, end]) if self._parts else Message(kind, end)
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


def _close(payload: bytes) -> Message:
    """Return a close. Raises FrameError for one with a code that must not be sent."""
    if not payload:
        return Message("close", b"")
    code = int.from_bytes(payload[:2])
    is_known = code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000
    if len(payload) == 1 or not is_known:
        raise FrameError(PROTOCOL_ERROR, "The close frame has no valid code.")
    return Message("close", payload[2:], code)


def apply_mask(payload: bytes, mask: bytes) -> bytearray:
    """Mask a payload, or unmask it: every fourth byte is combined with the same byte, which a table does at once."""
    combined = bytearray(len(payload))
    for position in range(4):
        combined[position::4] = payload[position::4].translate(_TABLES[mask[position]])
    return combined


_TABLES = [bytes([value ^ byte for value in range(256)]) for byte in range(256)]
