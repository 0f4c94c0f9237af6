"""Finds the URLs, files and file ids that a request names, however the names are written.

References are the strings of input, instructions and prompt under a name that ends in `url` (image_url, imageUrl, an
object {"url"}), under `file_data` and under `file_id`; of tools their image_url, file_url, file_data and file ids. No
references are an MCP server_url (see the policy `tools`), and links and ids that only say where something came from
(annotations, results, actions, the page of a screenshot, the outputs of a code interpreter).
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import SchemaValidator, core_schema

from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import clip

Step = str | int
REFERENCE_FIELDS = ("input", "items", "instructions", "prompt", "tools")
# Fields that say where something came from, or hold what a model sent to a tool: no provider fetches what they name.
PROVENANCE = frozenset({
    "action", "actions", "annotations", "arguments", "citations", "results", "search_results", "sources",
})  # fmt: skip
# Names that end in `url` and are no references: of an MCP server, and of the page that a screenshot shows.
OTHER_URLS = ("serverurl", "currenturl")
# The item whose `outputs` have links to what it made, each in a plain `url`.
MAKER, MADE = "code_interpreter_call", "outputs"
FILE_IDS = ("fileid", "fileids")
FILE_DATA = "filedata"
REFERENCE_SUFFIXES = ("url", *FILE_IDS, FILE_DATA)
# A fast pre-filter for any spelling of these field names in JSON. Beside ASCII, a long s and ligatures fold to their
# letters. pydantic's pattern engine searches for all alternatives at once, in a tenth of the time of `re`.
ANY, JOINT = "[-_]*", "[-_]+"
URL = f'url{ANY}":|u{JOINT}r{ANY}l{ANY}":|ur{JOINT}l{ANY}":'
FILE = f'file{ANY}(?:i{ANY}d{ANY}s?|d{ANY}a{ANY}t{ANY}a){ANY}":|f{JOINT}i{ANY}l{ANY}e|fi{JOINT}l{ANY}e|fil{JOINT}e'
MAY_REFERENCE = core_schema.str_schema(pattern=f"(?i-u:{URL}|{FILE})|[\u017f\ufb00-\ufb06]")
_find_reference = SchemaValidator(
    core_schema.with_default_schema(MAY_REFERENCE, default=None, on_error="default")
).validate_python
PLAIN_TEXT_FIELDS = frozenset({
    "arguments", "call_id", "content", "description", "id", "name", "output", "role", "text", "type",
})  # fmt: skip
CONTAINERS = (dict, list)
MAX_VALUES = 200_000  # about a second of work

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
UNSAFE = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f]")
AUTHORITY = re.compile(r"//([^/]+)")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>{LABEL}(?:\.{LABEL})*)\.?)(?::[0-9]{{1,5}})?")
NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")
MAX_HOST_CHARS = 253


def may_have_references(encoded: bytes) -> bool:
    """Return False if no name in the JSON can be that of a reference: a tenth of the cost of walking the body."""
    return _find_reference(encoded) is not None


def references(body: Mapping[str, object]) -> Iterator[tuple[list[Step], str, str]]:
    """Yield each string of a request that may name a file or be one: its path, its normalized name, and its value.

    Raises PolicyViolation for a request of more values than can be walked without delaying others. Memory grows
    with the depth only, and there is no recursion. This walk is not `support.walk`, which is faster: a refusal needs
    the path of the value, and must be the same in whatever order the names of an object come.
    """
    path: list[Step] = []
    checked = {field: body[field] for field in REFERENCE_FIELDS if field in body}
    stack = [("", _children(checked), False, False)]
    left = MAX_VALUES
    while stack:
        outer, steps, is_maker, is_made = stack[-1]
        for step, value in steps:
            if isinstance(value, str):
                if step not in PLAIN_TEXT_FIELDS and (name := _plain_name(step, outer)).endswith(REFERENCE_SUFFIXES):
                    if is_made and name == "url" and not outer.endswith("url"):
                        continue
                    yield [*path, step], name, value
            elif value and isinstance(value, CONTAINERS):
                left -= len(value)
                if left < 0:
                    found = f"The input has too many values to be checked; the limit is {MAX_VALUES}."
                    raise PolicyViolation("too_many_values", found, param=path_of(path))
                path.append(step)
                is_maker_inside = isinstance(value, dict) and value.get("type") == MAKER
                is_made_inside = is_made or (is_maker and step == MADE)
                stack.append((_plain_name(step, outer), _children(value), is_maker_inside, is_made_inside))
                break
        else:
            stack.pop()
            del path[-1:]


def _children(value: Mapping[str, object] | list[object]) -> Iterator[tuple[Step, object]]:
    """The values in an array, or in an object sorted by name."""
    return iter(enumerate(value)) if isinstance(value, list) else iter([(name, value[name]) for name in sorted(value)])


def _plain_name(step: Step, outer: str) -> str:
    """The name of a value without case, hyphens and underscores; values in an array have the name of the array."""
    return outer if isinstance(step, int) else step.casefold().replace("_", "").replace("-", "")


def is_reference(path: Sequence[Step], name: str) -> bool:
    """Whether a provider fetches or reads what a string at this path, with this normalized name, refers to."""
    if path[:2] == ["prompt", "variables"]:
        path = path[3:]  # names of variables are the caller's own; a bare string is text
        if not path:
            return False
    has_provenance = not PROVENANCE.isdisjoint(path)
    if name in FILE_IDS:
        return not has_provenance
    if name == "url":  # an object {"url": ...} is described by the name that the object itself has
        outside = [step for step in path[:-1] if isinstance(step, str) and step != "url"][-1:]
        name = "imageurl" if outside and _plain_name(outside[0], "").endswith("url") else name
    if has_provenance or "tools" in path:
        return name in ("imageurl", "fileurl", FILE_DATA)
    return name not in OTHER_URLS


def path_of(path: Sequence[Step]) -> str:
    """Return a path as errors of the protocol write it: input[0].content[1].image_url."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:40]}" for step in path[:40])
    where = shorten("".join(steps).removeprefix("."), 36)
    return where if where.isprintable() else shorten(ascii(where)[1:-1], 36)


def shorten(text: str, longest: int) -> str:
    """Return the beginning of a text, with dots where it was cut."""
    return clip(text, longest) + "..." * (len(text) > longest)
