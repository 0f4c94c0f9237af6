"""What an endpoint of the admin API is, and what a request to one has."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from proxy.admin.roles import EVERYBODY, Operator
from proxy.admin.services import Services
from proxy.config.admin_table import Role
from proxy.config.field_docs import field_docs
from proxy.wire.loggable import printable

VERSION = "/admin/v1"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d", re.ASCII)
Name = Annotated[str, Field(min_length=1, max_length=256)]
"""A name of something that exists."""
Wanted = Annotated[str, Field(max_length=256)]
"""A name, or "" for any."""
Searched = Annotated[str, Field(max_length=256), AfterValidator(partial(printable, max_chars=1024))]
"""A text that a search compares with what is kept, in which control characters are escaped; "" is any."""


def _check_moment(value: object) -> object:
    """Raises ValueError for what is no time in RFC 3339: a number would be read as seconds."""
    if isinstance(value, str) and not MOMENT.match(value):
        raise ValueError("a time is written as 2026-11-30T10:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_check_moment)]
"""A time with its zone."""


class Parameters(BaseModel):
    """The query or the body of a request; an unknown member is an error, so that a misspelt one is not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler, /) -> JsonSchemaValue:
        described = handler(schema)
        properties = handler.resolve_ref_schema(described).get("properties", {})
        for name, text in field_docs(cls).items():
            properties[name]["description"] = text
        return described


class NoParameters(Parameters):
    """Nothing can be said."""


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One request of an operator who may make it."""

    operator: Operator
    services: Services
    query: Any = field(default_factory=NoParameters)
    """Of the endpoint's class."""
    body: Any = None
    """Of the endpoint's class, if it has one."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Those of the path."""


Run = Callable[[AdminRequest], Awaitable[Any]]
"""Returns what is answered, as JSON. Raises Problem."""


@dataclass(frozen=True, slots=True)
class AdminEndpoint:
    """One method of one path, and who may use it."""

    method: str
    path: str
    """Below VERSION, with {names}."""
    summary: str
    run: Run
    returns: Any
    """The type of the answer, a TypedDict."""
    query: type[Parameters] = NoParameters
    body: type[Parameters] | None = None
    roles: frozenset[Role] = EVERYBODY
    is_global: bool = False
    """Whether it concerns all teams, so that operators of one team may not use it."""
    status: int = 200
    media: str = "application/json"
    """The type of the answer; any other than JSON is a text."""

    @property
    def template(self) -> str:
        """Return the whole path."""
        return f"{VERSION}{self.path}"
