"""Random JSON schemas of every kind that can be enforced."""

from typing import Any

from hypothesis import strategies as st

JSON = dict[str, Any]
NAMES = st.text('abcxyz_ é"\\', min_size=1, max_size=4)
PATTERNS = ("^[a-c]{1,3}$", "^x?y+$", "[0-9]", "^(red|green)-[0-9]{2}$")
FORMATS = ("date", "time", "uuid", "ipv4", "email", "date-time")
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), NAMES)


@st.composite
def bounded(draw: st.DrawFn, low: str, high: str, least: int, most: int) -> JSON:
    """None, one or both of two bounds, in their order."""
    first, second = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
    return (
        {low: first} if draw(st.booleans()) else {low: first, high: second} if draw(st.booleans()) else {high: second}
    )


@st.composite
def texts(draw: st.DrawFn) -> JSON:
    kind = draw(st.sampled_from(["free", "length", "length", "pattern", "format"]))
    found: JSON = {"type": "string"}
    if kind == "length":
        found |= draw(bounded("minLength", "maxLength", 0, 6))
    if kind == "pattern":
        found["pattern"] = draw(st.sampled_from(PATTERNS))
    if kind == "format":
        found["format"] = draw(st.sampled_from(FORMATS))
    return found


@st.composite
def numbers(draw: st.DrawFn) -> JSON:
    found: JSON = {"type": draw(st.sampled_from(["integer", "number"]))}
    if draw(st.booleans()):
        found |= draw(bounded("minimum", "maximum", -1000, 1000))
    elif draw(st.booleans()):
        low = draw(st.integers(-50, 50))
        found |= {"exclusiveMinimum": low, "exclusiveMaximum": low + draw(st.integers(2, 60))}
    elif found["type"] == "integer" and draw(st.booleans()):
        found["multipleOf"] = draw(st.integers(1, 12))
    return found


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> JSON:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    found: JSON = {"type": "object", "properties": properties, "additionalProperties": False}
    found["required"] = [name for name in properties if draw(st.booleans())]
    if not draw(st.integers(0, 3)):
        found["additionalProperties"] = draw(inner)
    return found


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> JSON:
    found: JSON = {"type": "array", "items": draw(inner)} | draw(bounded("minItems", "maxItems", 0, 3))
    if draw(st.booleans()):
        found["prefixItems"] = [draw(inner)]
    return found


def _within(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        objects(inner),
        objects(inner),
        arrays(inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    )


LEAVES = st.one_of(
    st.just({"type": "boolean"}), st.just({"type": "null"}), st.just({"type": ["string", "null"]}), numbers(), texts(),
    st.builds(lambda some: {"enum": some}, st.lists(SCALARS, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, SCALARS),
)  # fmt: skip


@st.composite
def schemas(draw: st.DrawFn) -> JSON:
    """Often with definitions, one of which contains itself."""
    inner = st.recursive(LEAVES, _within, max_leaves=6)
    found: JSON = draw(inner)
    if draw(st.booleans()):
        found = {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/one"}, "more": {"$ref": "#/$defs/list"}, "own": found},
        }
        found |= {"required": ["at", "own"], "additionalProperties": False}
        again = {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 2}
        found["$defs"] = {"one": draw(inner), "list": again}
    return found
