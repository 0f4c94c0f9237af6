"""Whether a schema has a value that ends: where each value must hold another one by the same schema none does."""

from collections.abc import Collection, Mapping
from typing import Any

from backends.local.grammar.hardness import target
from backends.local.grammar.schema import Problem, nodes

# Each pass finds what ends one reference further; a schema with longer chains is not looked at to its end.
MAX_PASSES = 20


def check_finite(schema: Mapping[str, Any]) -> None:
    """Raises Problem for a schema that only values without end would satisfy. Needs one whose shapes were checked."""
    inwards = [node for _, node in nodes(schema)]
    inwards.reverse()
    aims = {id(node): _aim(schema, node) for node in inwards if "$ref" in node}
    if not aims:
        return
    ending: set[int] = set()
    for _ in range(MAX_PASSES):
        found = {id(node) for node in inwards if id(node) not in ending and _ends(node, aims.get(id(node)), ending)}
        ending |= found
        if not found:
            break
        if id(schema) in ending:
            return
    else:
        return
    raise Problem("every value by it would have to hold another one, without end.")


def _aim(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    try:
        return target(schema, node)
    except Problem:  # told elsewhere, where it matters
        return None


def _ends(node: Mapping[str, Any], aim: Any, ending: Collection[int]) -> bool:
    def ends(inner: Any) -> bool:
        return not isinstance(inner, dict) or id(inner) in ending

    if not ends(aim) or not all(map(ends, node.get("allOf", ()))):
        return False
    if any(choices in node and not any(map(ends, node[choices])) for choices in ("anyOf", "oneOf")):
        return False
    kinds = node.get("type", "any")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "enum" in node or "const" in node or kinds - {"object", "array"}:
        return True
    properties, least, first = node.get("properties", {}), int(node.get("minItems", 0)), node.get("prefixItems", [])
    whole = "object" in kinds and all(ends(properties.get(name)) for name in node.get("required", ()))
    items = [*first[:least], *([node.get("items")] if least > len(first) else [])]
    return whole or ("array" in kinds and all(map(ends, items)))
