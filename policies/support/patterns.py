r"""Regular expressions in settings, matched in linear time: no text a caller sends can make one slow.

The engine is Rust's `regex` crate, by way of pydantic. It has no back-references and no look-around; a pattern with
those is refused when the config is read. As in Python with re.ASCII, `\d`, `\w`, `\s` and `\b` know ASCII only.
Source: https://docs.rs/regex/latest/regex/#syntax
"""

import re
from collections.abc import Callable, Iterator

from pydantic_core import SchemaError, SchemaValidator, core_schema

_PIECE = re.compile(r"\\.|\[\^?\]?|\]|[^\\\[\]]+", re.DOTALL)
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\x0b\x0c\r "}
_BOUNDARIES = {"b": r"(?-u:\b)", "B": r"(?-u:\B)"}


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Return a function that says whether a whole text matches the pattern.

    Raises ValueError for a pattern that the engine does not accept.
    """
    whole = "^(?:" + "".join(_with_ascii_classes(pattern)) + ")$"
    try:
        schema = core_schema.str_schema(pattern=whole, strict=True)
        matches = SchemaValidator(schema, {"regex_engine": "rust-regex"}).isinstance_python
    except SchemaError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("error: ").strip()
        raise ValueError(f"not a regular expression that can be matched in linear time: {reason}") from error
    return matches


def _with_ascii_classes(pattern: str) -> Iterator[str]:
    depth = 0  # of brackets: inside them a class has none of its own
    for piece in _PIECE.findall(pattern):
        if piece.startswith("[") and not piece.endswith("]"):
            depth += 1
        elif piece == "]" and depth:
            depth -= 1
        yield _translate(piece, in_brackets=depth > 0) if piece.startswith("\\") else piece


def _translate(escape: str, *, in_brackets: bool) -> str:
    letter = escape[1:]
    if letter.lower() in _CLASSES:
        members = _CLASSES[letter.lower()]
        if letter.islower():
            return members if in_brackets else f"[{members}]"
        return f"[^{members}]"
    return escape if in_brackets else _BOUNDARIES.get(letter, escape)
