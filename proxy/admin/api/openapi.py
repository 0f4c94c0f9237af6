"""The OpenAPI document of the admin API, made from its endpoints.

Source: https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from proxy.admin.api.endpoint import AdminEndpoint, Parameters
from proxy.admin.problem import PROBLEM_TYPE

REF = "#/components/schemas/{model}"
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "string"}},
    },
}
DESCRIPTION = (
    "What operators of a gateway read and change. Send the key of an operator (`[[admin.key]]`) as a bearer token; on "
    "loopback without such keys none is needed. Errors are problems as in RFC 9457."
)
ERRORS = {
    "400": "The request is not valid",
    "401": "No key of an operator",
    "403": "The role or the team does not allow it",
    "404": "There is no such thing",
    "409": "Not possible with this config, or in this state",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "422": "The config has a fault",
    "429": "Too many streams are followed",
    "503": "A process or a store does not answer",
}


def describe(endpoints: Iterable[AdminEndpoint]) -> dict[str, Any]:
    """Return the document."""
    schemas: dict[str, Any] = {"Problem": PROBLEM}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headgate admin API", "version": version("headgate"), "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"operator": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"operator": []}, {}],
    }


def _operation(endpoint: AdminEndpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.run.__name__,
        "summary": endpoint.summary,
        "description": f"Roles: {', '.join(sorted(endpoint.roles))}{' of all teams' if endpoint.is_global else ''}.",
        "parameters": [*_path_parameters(endpoint.path), *_query_parameters(endpoint.query)],
        "responses": {
            str(endpoint.status): {
                "description": endpoint.summary,
                "content": {endpoint.media: {"schema": _schema(endpoint.returns, schemas, "serialization")}},
            },
            **{status: _problem(text) for status, text in ERRORS.items()},
        },
    }
    if endpoint.body is not None:
        content = {"application/json": {"schema": _schema(endpoint.body, schemas, "validation")}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model="Problem")}
    return {"description": text, "content": {PROBLEM_TYPE: {"schema": schema}}}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        schema = {"type": "string", "minLength": 1, "maxLength": 256}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(query: type[Parameters]) -> Iterable[dict[str, Any]]:
    for name, schema in query.model_json_schema().get("properties", {}).items():
        kinds = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
        text = schema.pop("description", "")
        schema.pop("default", None)
        schema.pop("title", None)
        yield {"name": name, "in": "query", "description": text, "schema": {**schema, **(kinds[0] if kinds else {})}}


def _schema(kind: Any, schemas: dict[str, Any], mode: Any) -> dict[str, Any]:
    if kind is str:
        return {"type": "string"}
    schema = TypeAdapter(kind).json_schema(ref_template=REF, mode=mode)
    schemas.update(schema.pop("$defs", {}))
    schemas[kind.__name__] = schema
    return {"$ref": REF.format(model=kind.__name__)}
