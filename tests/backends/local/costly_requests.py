"""Requests of a few kilobytes, each just below the limits of one schema or grammar, that once took many seconds."""

from typing import Any

JSON = dict[str, Any]
OPTIONAL_PART = r"[^a]?\p{L}*"


def tool(number: int, schema: JSON, *, strict: bool) -> JSON:
    """Return a function with this schema."""
    return {"type": "function", "name": f"f{number}", "parameters": schema, "strict": strict}


def grammar_tool(number: int, definition: str, syntax: str = "lark") -> JSON:
    """Return a custom tool with this grammar."""
    return {
        "type": "custom", "name": f"g{number}",
        "format": {"type": "grammar", "syntax": syntax, "definition": definition},
    }  # fmt: skip


def _object(properties: JSON) -> JSON:
    return {"type": "object", "properties": properties}


def choices(count: int, names: str) -> JSON:
    return {"anyOf": [_object({f"{names}{number}": {"type": "string"}}) for number in range(count)]}


def combined_choices(factors: int, count: int) -> JSON:
    """Return a schema of which the compiler makes `count` to the power of `factors` objects."""
    return _object({"a": {"allOf": [choices(count, f"n{factor}x") for factor in range(factors)]}})


def doubling_references(depth: int) -> JSON:
    """Return a schema of two chains in which each object names the next one twice; both apply to one value."""
    definitions: JSON = {}
    for chain in "ab":
        for number in range(depth):
            inner = {"$ref": f"#/$defs/{chain}{number + 1}"}
            definitions[f"{chain}{number}"] = _object({"x": inner, "y": inner})
        definitions[f"{chain}{depth}"] = {"type": "string"}
    value = {"allOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/b0"}]}
    return _object({"v": value}) | {"$defs": definitions}


def required_choices(count: int) -> JSON:
    """Return an object whose properties are repeated for each choice."""
    properties = {f"p{number}": {"type": "string"} for number in range(count)}
    return _object(properties) | {"anyOf": [{"required": [name]} for name in properties]}


def long_patterns(parts: int) -> JSON:
    """Return an object of four texts whose patterns have so many parts that may be empty."""
    patterns = [OPTIONAL_PART * (parts + number) for number in range(4)]
    return _object({f"p{number}": {"type": "string", "pattern": text} for number, text in enumerate(patterns)})


def repeated_terminals(times: int, depth: int) -> str:
    """Return a Lark grammar whose last terminal contains the first one `times` to the power of `depth` times."""
    lines = [r"T0: /[^a]?\p{L}*/"]
    lines += [f"T{level + 1}: " + f"T{level} " * times for level in range(depth)]
    return "\n".join([f"start: T{depth}", *lines])


COSTLY: dict[str, JSON] = {
    "combined choices": {"tools": [tool(n, combined_choices(4, 8), strict=True) for n in range(15)]},
    "combined choices, not strict": {"tools": [tool(n, combined_choices(3, 10), strict=False) for n in range(15)]},
    "two lists of choices": {"tools": [tool(n, combined_choices(2, 35), strict=True) for n in range(6)]},
    "references": {"tools": [tool(n, doubling_references(12 - n % 2), strict=True) for n in range(10)]},
    "required": {"tools": [tool(n, required_choices(60 + n), strict=True) for n in range(10)]},
    "terminals": {"tools": [grammar_tool(1, repeated_terminals(10, 5))]},
    "a long terminal": {"tools": [grammar_tool(1, r"start: T" "\n" r"A: /\p{L}*/" "\nT: " + "A " * 5000)]},
    "a regular expression": {"tools": [grammar_tool(1, OPTIONAL_PART * 1200, "regex")]},
    "many regular expressions": {"tools": [grammar_tool(n, OPTIONAL_PART * (400 + n), "regex") for n in range(30)]},
    "patterns": {"tools": [tool(n, long_patterns(140 + n), strict=True) for n in range(12)]},
    "a format beside tools": {
        "text": {"format": {"type": "json_schema", "name": "n", "strict": True, "schema": combined_choices(2, 35)}},
        "tools": [tool(n, combined_choices(2, 35 - n), strict=True) for n in range(8)],
    },
}
