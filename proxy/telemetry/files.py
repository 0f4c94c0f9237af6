"""Files of JSON lines that the gateway appends to: private to their owner, and never left with half a line."""

import errno
import os
from pathlib import Path
from typing import BinaryIO


def open_private(path: Path) -> BinaryIO:
    """Open a file for appending, unbuffered. A new one is readable by its owner only. Raises OSError."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def append_line(file: BinaryIO, line: bytes) -> None:
    """Append a line to an unbuffered file, or nothing of it. Raises OSError when there is no room."""
    line += b"\n"
    written = file.write(line)
    if written != len(line):  # a disk that is nearly full takes a part, and reports the error only on the next write
        file.truncate(file.tell() - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
