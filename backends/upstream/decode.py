"""Decompresses an answer that is compressed although no coding was requested, in steps, within a ratio."""

import asyncio
import zlib
from typing import Any

from proxy.wire.compression import CODINGS, MAX_RATIO, decompressor_for, exceeds_ratio

STEP_BYTES = 262_144


class Decoder:
    """Decompresses the chunks of one answer."""

    def __init__(self, coding: str) -> None:
        """Raises ValueError for a coding that is not supported."""
        self._coding = coding.strip().lower() or "identity"
        if self._coding not in CODINGS:
            raise ValueError("an answer in an unsupported content coding")
        self.is_plain = self._coding == "identity"
        """Whether chunks are not compressed."""
        self._decompressor: Any = None
        self._received = 0
        self._size = 0

    async def decode(self, chunk: bytes) -> bytes:
        """Return the decompressed chunk, which may be empty so far. Raises ValueError."""
        if self.is_plain:
            return chunk
        if self._decompressor is None:
            self._decompressor = decompressor_for(self._coding, chunk)
        self._received += len(chunk)
        parts: list[bytes] = []
        part, rest = b"", chunk
        while not parts or len(part) == STEP_BYTES:
            part, rest = self._decompress(rest)
            parts.append(part)
            if len(part) == STEP_BYTES:
                await asyncio.sleep(0)
        return b"".join(parts)

    def close(self) -> None:
        """Raises ValueError if the answer ended too early."""
        if self._decompressor is not None and not self._decompressor.eof:
            raise ValueError("a truncated answer")

    def _decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the next step, and the data that it left over."""
        try:
            part: bytes = self._decompressor.decompress(data, STEP_BYTES)
        except zlib.error as error:
            raise ValueError("an answer that cannot be decompressed") from error
        if self._decompressor.unused_data:
            raise ValueError("an answer with bytes after its compressed end")
        self._size += len(part)
        if exceeds_ratio(self._size, self._received):
            raise ValueError(f"an answer of more than {MAX_RATIO} times its compressed size")
        return part, self._decompressor.unconsumed_tail
