"""`text.format`: plain text, any JSON object, or JSON by a schema, which a grammar then enforces.

Source: https://platform.openai.com/docs/guides/structured-outputs
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.local.grammar import JsonStyle, check_schema, json_rule, schema_prompt
from backends.local.request.validation import invalid_type, invalid_value, missing_parameter, shorten
from proxy.wire.errors import RequestError

PARAM = "text.format"
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The format of an answer's text: JSON by `schema`, or anything when that is None."""

    schema: Mapping[str, Any] | None = None
    instruction: str = ""  # describes the format to the model

    def build_rule(self, style: JsonStyle) -> str | None:
        """Return the format as the body of a grammar rule; None for free text."""
        return None if self.schema is None else json_rule(self.schema, style=style)


def read_text_format(body: Mapping[str, Any]) -> TextFormat:
    """Return the request's text format. Raises RequestError, also for a schema that cannot be enforced."""
    given = (body.get("text") or {}).get("format")
    if given is None:
        return TextFormat()
    if not isinstance(given, dict):
        raise invalid_type(PARAM, "an object", given)
    match given.get("type"):
        case "text":
            return TextFormat()
        case "json_object":
            return TextFormat(ANY_OBJECT, schema_prompt(None))
        case "json_schema":
            schema = _read_schema(given)
            return TextFormat(schema, schema_prompt(schema))
        case other:
            raise invalid_value(f"{PARAM}.type", str(other), "'text', 'json_object' and 'json_schema'")


def _read_schema(given: Mapping[str, Any]) -> Mapping[str, Any]:
    name, schema, strict = (given.get(key) for key in ("name", "schema", "strict"))
    if name is None:
        raise missing_parameter(f"{PARAM}.name")
    if not isinstance(name, str):
        raise invalid_type(f"{PARAM}.name", "a string", name)
    if not NAME.fullmatch(name):
        message = f"Invalid '{PARAM}.name': '{shorten(name)}' does not match '^[a-zA-Z0-9_-]{{1,64}}$'."
        raise RequestError(message, code="invalid_value", param=f"{PARAM}.name")
    if schema is None:
        raise missing_parameter(f"{PARAM}.schema")
    if not isinstance(strict, bool | None):
        raise invalid_type(f"{PARAM}.strict", "a boolean", strict)
    check_schema(schema, f"{PARAM}.schema", strict=strict is True, owner=f"response_format '{name}'")
    if not isinstance(schema, dict):  # check_schema has refused it; this informs the type checker
        raise RequestError("A schema is an object.", param=f"{PARAM}.schema")
    return schema
