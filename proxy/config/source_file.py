"""A TOML file -> its tables, and the places of faults in it."""

import hashlib
import re
import tomllib
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.config.positions import locate, positions
from proxy.config.validation import ConfigError

PLACE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)
"""The end of tomllib's messages."""
OVERWRITTEN = "this is there already; a key is given once, and each of several tables has two brackets: [[caller]]"
TWICE = re.compile(r"(?:Cannot declare|Cannot mutate immutable namespace) \('([^']+)',\)(?: twice)?")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read."""

    path: Path
    content: bytes

    @staticmethod
    def read(path: Path) -> "SourceFile":
        """Read a file. Raises ConfigError."""
        try:
            return SourceFile(path, path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def tables(self) -> dict[str, Any]:
        """Return its tables, which need not be a config that can be served. Raises ConfigError."""
        try:
            return tomllib.loads(self._text())
        except RecursionError as error:
            raise ConfigError(f"{self.path}: not TOML that can be read: it is nested too deeply") from error
        except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
            found = PLACE.fullmatch(str(error))
            place, message = (f"{found[2]}:{found[3]}:", found[1]) if found else ("", str(error))
            message = OVERWRITTEN if message == "Cannot overwrite a value" else message
            if twice := TWICE.fullmatch(message):
                message = (
                    f"there is a table [{twice[1]}] already; of one that there are several of, each is [[{twice[1]}]]"
                )
            raise ConfigError(f"{self.path}:{place} not TOML: {message}") from error

    def locate(self, sentences: Iterable[str]) -> list[str]:
        """Return sentences that begin with the path of a key, each after its place, `my.toml:7:1`, in this order."""
        return locate(sentences, str(self.path), positions(self._text()))

    def _text(self) -> str:
        """Return its text, without the mark that some editors of Windows put before it. Raises ValueError."""
        return self.content.removeprefix(BOM_UTF8).decode().replace("\r\n", "\n")
