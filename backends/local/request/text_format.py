"""`text.format`: plain text, any JSON object, or JSON by a schema, which a grammar then holds.

Source: https://platform.openai.com/docs/guides/structured-outputs
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.local.grammar import Style, json_rule, refuse_unsupported, schema_prompt
from backends.local.request.faults import missing, shown, wrong_type, wrong_value
from proxy.wire.errors import RequestError

PARAM = "text.format"
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class TextFormat:
    """What an answer's text must be: JSON by `schema`, or anything when that is None."""

    schema: Mapping[str, Any] | None = None
    prompt: str = ""  # what the model is told of it

    def rule(self, style: Style) -> str | None:
        """As grammars of whole answers take it."""
        return None if self.schema is None else json_rule(self.schema, style=style)


def text_format(body: Mapping[str, Any]) -> TextFormat:
    """Raises RequestError, also for a schema that cannot be held."""
    form = (body.get("text") or {}).get("format")
    if form is None:
        return TextFormat()
    if not isinstance(form, dict):
        raise wrong_type(PARAM, "an object", form)
    match form.get("type"):
        case "text":
            return TextFormat()
        case "json_object":
            return TextFormat(ANY_OBJECT, schema_prompt(None))
        case "json_schema":
            schema = _schema(form)
            return TextFormat(schema, schema_prompt(schema))
        case other:
            raise wrong_value(f"{PARAM}.type", str(other), "'text', 'json_object' and 'json_schema'")


def _schema(form: Mapping[str, Any]) -> Mapping[str, Any]:
    name, schema, strict = (form.get(key) for key in ("name", "schema", "strict"))
    if name is None:
        raise missing(f"{PARAM}.name")
    if not isinstance(name, str):
        raise wrong_type(f"{PARAM}.name", "a string", name)
    if not NAME.fullmatch(name):
        found = f"Invalid '{PARAM}.name': '{shown(name)}' does not match '^[a-zA-Z0-9_-]{{1,64}}$'."
        raise RequestError(found, code="invalid_value", param=f"{PARAM}.name")
    if schema is None:
        raise missing(f"{PARAM}.schema")
    if not isinstance(strict, bool | None):
        raise wrong_type(f"{PARAM}.strict", "a boolean", strict)
    refuse_unsupported(schema, f"{PARAM}.schema", strict=strict is True, of=f"response_format '{name}'")
    if not isinstance(schema, dict):  # refused above; who reads types does not know
        raise RequestError("A schema is an object.", param=f"{PARAM}.schema")
    return schema
