"""The base class of all tables of the config."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

EXACT_TYPES = frozenset({"bool", "int", "float", "str"})


def _make_exact(schema: Any) -> None:
    """Make a schema strict, so that no type of TOML is converted. pydantic's own `strict` refuses paths and tuples."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ()
    if isinstance(schema, dict) and schema.get("type") in EXACT_TYPES:
        schema["strict"] = True
    for part in parts:
        _make_exact(part)


class Table(BaseModel):
    """A TOML table. Its fields are its keys; an unknown key is an error, so that a misspelt one is not ignored.

    TOML has types of its own, so that none is converted: neither `true` nor "8" nor 8.0 is an integer. An integer is a
    float anyway. What TOML has no type for is converted: a path, an address of a network, a tuple.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a secret written in the wrong place must not appear in a traceback
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        schema = handler(source)
        _make_exact(schema)
        return schema


def _to_network(value: object) -> object:
    """Return the network of a text. Raises ValueError for a number too: it is an address, but hardly the one meant."""
    try:
        return ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError('Input should be a network without host bits, such as "10.0.0.0/8"') from None


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_to_network)]
