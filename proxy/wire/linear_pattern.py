"""Patterns that Rust's `regex` finds, by way of pydantic: in linear time, but not where in a text they are."""

from collections.abc import Callable

Occurs = Callable[[str], bool]
"""Returns whether a pattern occurs anywhere in a text."""


def compile_linear(pattern: str) -> Occurs:
    """Compile a pattern of Rust's `regex`. It takes no texts with halves of surrogate pairs."""
    from pydantic_core import SchemaValidator, core_schema  # here: processes of local models start without it

    return SchemaValidator(core_schema.str_schema(pattern=pattern), {"regex_engine": "rust-regex"}).isinstance_python
