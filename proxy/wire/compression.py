"""Decompresses bodies: which codings are supported, and how much larger than compressed a body may be."""

import zlib
from typing import Any

CODINGS = frozenset({"identity", "gzip", "deflate"})
MAX_RATIO = 200  # of decompressed to compressed bytes; JSON text compresses to a tenth
ANY_RATIO_BYTES = 1_048_576  # what may be decompressed at any ratio


def decompressor_for(coding: str, beginning: bytes) -> Any:
    """Return a `zlib.decompressobj` for gzip or deflate. Some senders of deflate leave its zlib header out."""
    is_raw = coding == "deflate" and beginning[:1] and beginning[0] & 0xF != zlib.DEFLATED
    return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)


def exceeds_ratio(size: int, compressed_size: int) -> bool:
    """Whether no text of a client or server compresses like this."""
    return size > max(ANY_RATIO_BYTES, MAX_RATIO * compressed_size)
