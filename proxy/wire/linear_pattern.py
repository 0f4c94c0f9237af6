"""Matches patterns with Rust's `regex`, through pydantic: in linear time, but without the position of a match."""

from collections.abc import Callable

Occurs = Callable[[str | bytes], bool]
"""Returns whether a pattern occurs anywhere in a text; bytes are one in UTF-8."""


def compile_linear(pattern: str) -> Occurs:
    """Return a matcher for a pattern of Rust's `regex`. It finds nothing in a text that is not valid Unicode."""
    from pydantic_core import SchemaValidator, core_schema  # here: processes of local models start without it

    return SchemaValidator(core_schema.str_schema(pattern=pattern), {"regex_engine": "rust-regex"}).isinstance_python
