"""Whether a recursive schema has a finite value: none exists where every value must contain another one."""

from collections.abc import Collection, Mapping
from typing import Any

from backends.local.grammar.complexity import resolve_reference
from backends.local.grammar.schema import SchemaError, iterate_schemas

# Each pass follows references one step further; a schema with longer chains is accepted unchecked.
MAX_PASSES = 20


def check_recursion(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError for a schema that only infinite values would satisfy. Requires checked keyword types."""
    innermost_first = [node for _, node in iterate_schemas(schema)]
    innermost_first.reverse()
    targets = {id(node): _resolve(schema, node) for node in innermost_first if "$ref" in node}
    if not targets:
        return
    finite: set[int] = set()
    for _ in range(MAX_PASSES):
        unknown = [node for node in innermost_first if id(node) not in finite]
        found = {id(node) for node in unknown if _is_finite(node, targets.get(id(node)), finite)}
        finite |= found
        if not found:
            break
        if id(schema) in finite:
            return
    else:
        return
    raise SchemaError("every value would have to contain another one, without end.")


def _resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    try:
        return resolve_reference(schema, node)
    except SchemaError:  # check_complexity reports it where it matters
        return None


def _is_finite(node: Mapping[str, Any], target: Any, finite: Collection[int]) -> bool:
    def is_known(inner: Any) -> bool:
        return not isinstance(inner, dict) or id(inner) in finite

    if not is_known(target) or not all(map(is_known, node.get("allOf", ()))):
        return False
    if any(choices in node and not any(map(is_known, node[choices])) for choices in ("anyOf", "oneOf")):
        return False
    types = node.get("type", "any")
    types = {types} if isinstance(types, str) else set(types)
    if "enum" in node or "const" in node or types - {"object", "array"}:
        return True
    properties, least, first = node.get("properties", {}), int(node.get("minItems", 0)), node.get("prefixItems", [])
    is_object = "object" in types and all(is_known(properties.get(name)) for name in node.get("required", ()))
    items = [*first[:least], *([node.get("items")] if least > len(first) else [])]
    return is_object or ("array" in types and all(map(is_known, items)))
