"""The ids in a request: of responses, conversations, items, files, vector stores, containers and skills.

An id that only says where something came from (annotations, results) gives access to nothing, and is none of these.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

from policies.support.urls import PROVENANCE
from policies.support.walk import FIELDS_WITHOUT_LISTS, ITEM_FIELDS, SCHEMAS, plain_name
from proxy.wire.call import PLAIN_FIELDS, Call, unaffected_by
from proxy.wire.errors import NotFound, RequestError
from proxy.wire.large_bytes import WINDOW_BYTES
from proxy.wire.linear_pattern import Occurs, compile_linear
from proxy.wire.loggable import clip

Kind = Literal["response", "conversation", "item", "file", "vector_store", "container", "skill", "object"]
"""The kind of object that an id names; "object" is anything created on a relayed path."""
MAX_REFERENCES = 1_000
"""The most different ids in one request: the owner of each is read."""
MAX_ID_CHARS = 256
# Fields of any object in a request that hold an id or a list of ids, by their plain names.
ID_FIELDS: Mapping[str, Kind] = {
    "fileid": "file", "fileids": "file", "vectorstoreid": "vector_store", "vectorstoreids": "vector_store",
    "container": "container", "containerid": "container", "comparisonresponseid": "response",
    "skillid": "skill",
}  # fmt: skip
# Items that an upstream looks up by their id if none of the fields with their content is there, by their plain type.
CONTENT_OF_ITEMS = {"reasoning": ("encrypted_content", "content"), "imagegenerationcall": ("result",)}
CONTAINERS = frozenset({dict, list})
_ANY = "[-_]*"
_NAMES = "|".join(_ANY.join(name) for name in ID_FIELDS)


def _finder(before: str, folded: str = "") -> Occurs:
    """Return a fast pre-filter for any spelling of these names in JSON, after what is before them, and for `folded`."""
    return compile_linear(f'(?i-u:{before}(?:{_NAMES}){_ANY}":){folded}')


_FOLDED = "|[\u017f\u212a\ufb00-\ufb06]"
"""A long s, the sign of kelvins and ligatures fold to ASCII letters: some decoders of JSON read names of fields so."""
# Where there can be none of them, the search looks for the ends of names first, in a third of the time.
_may_reference_in_ascii, _may_reference = _finder(""), _finder("", _FOLDED)
# Without a quotation mark a search takes half as long, and finds longer names that end so. In the long strings of large
# texts, which have none, it is what the search can look for first: 64 MB take 10 ms instead of 100.
_may_reference_in_large = _finder('"', _FOLDED)


class Reference(NamedTuple):
    """One id in a request, and the field that contains it; None for the path."""

    kind: Kind
    id: str
    param: str | None


class KeptReference(NamedTuple):
    """An id in a request that is the team's own, and the name of the backend that keeps what it names."""

    kind: Kind
    id: str
    param: str | None
    target: str


def continued(body: Mapping[str, Any]) -> list[Reference]:
    """Return what a call continues; the first reference decides its chain. Raises RequestError for overlong ids."""
    if body.get("conversation") is None and body.get("previous_response_id") is None:  # as most
        return []
    found = []
    if (conversation := conversation_id(body)) is not None:
        found.append(Reference("conversation", conversation, "conversation"))
    if isinstance(previous := body.get("previous_response_id"), str):
        found.append(Reference("response", previous, "previous_response_id"))
    for reference in found:
        _check_length(reference)
    return found


@unaffected_by(PLAIN_FIELDS)
def find_references(call: Call) -> list[Reference]:
    """Return every id in a call's body, each once. Raises RequestError for overlong and for too many ids."""
    body = call.body
    named = continued(body)
    for field in ITEM_FIELDS:
        if field in body and isinstance(items := body[field], list):
            named += _stored_items(items, field)
    encoded = call.encoded
    if len(encoded) > WINDOW_BYTES:
        may_reference = _may_reference_in_large
    else:
        may_reference = _may_reference_in_ascii if encoded.isascii() else _may_reference
    if may_reference(encoded):
        named += _ids_inside(body)
    if not named:
        return named
    found = dict.fromkeys(named)
    for reference in found:
        _check_length(reference)
    if len(found) > MAX_REFERENCES:
        message = f"The request has {len(found)} different ids of stored objects; the limit is {MAX_REFERENCES}."
        raise RequestError(message, code="too_many_references")
    return list(found)


def conversation_id(holder: Mapping[str, Any]) -> str | None:
    """Return the id of the conversation that a request or a response names: as a text, or as {"id": ...}."""
    conversation = holder.get("conversation")
    if conversation is None:
        return None
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) else None


def is_id(value: object) -> TypeGuard[str]:
    """Return whether a value can be an id. Source: the OpenAPI document (ids have at most 64 characters)."""
    return isinstance(value, str) and len(value) <= MAX_ID_CHARS


def is_public(reference: Reference) -> bool:
    """Whether an id without an owner names something of the provider's own, such as the skill `openai-spreadsheets`.

    The id of a skill that was created has a digit.
    """
    return reference.kind == "skill" and not any(map(str.isdigit, reference.id))


NOT_PERSISTED = (
    " Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove this item "
    "from your input."
)


def not_found(param: str | None, value: str, kind: Kind | None = None) -> NotFound:
    """Return the refusal of an id that is unknown, or another team's: both have the same words.

    `param` is the field that has the id, None for the path; `kind` can be left out for what a call continues.
    """
    kind = kind or ("conversation" if param == "conversation" else "response")
    if kind == "response" and param is not None:
        message = f"Previous response with id '{clip(value, 80)}' not found."
        return NotFound(message, code="previous_response_not_found", param=param)
    message = f"{kind.replace('_', ' ').capitalize()} with id '{clip(value, 80)}' not found."
    if kind == "item" and param is not None:
        message += NOT_PERSISTED
    return NotFound(message, status=404, param=param)


def _check_length(reference: Reference) -> None:
    if len(reference.id) > MAX_ID_CHARS:
        raise not_found(reference.param, reference.id, reference.kind)


def _stored_items(items: Sequence[Any], field: str) -> list[Reference]:
    """Return the items in a field that an upstream looks up: references, and items without their content."""
    found = []
    for item in items:
        if type(item) is dict and "id" in item and type(item["id"]) is str and _is_stored(item):
            found.append(Reference("item", item["id"], field))  # noqa: PERF401  a list of its own costs each call more
    return found


def _is_stored(item: Mapping[str, Any]) -> bool:
    """Return whether an item has an id and no content that an upstream could read."""
    kind = item.get("type")
    if kind is None:
        return "role" not in item and "content" not in item
    plain = plain_name(kind) if isinstance(kind, str) else ""
    content = CONTENT_OF_ITEMS.get(plain)
    return plain == "itemreference" or (content is not None and not any(item.get(name) for name in content))


def _ids_inside(body: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield the ids of files, vector stores, containers, skills and compared responses, wherever in a body they are."""
    for field, value in body.items():
        waiting: list[Any] = [] if field in FIELDS_WITHOUT_LISTS else [{field: value}]
        while waiting:
            inside = waiting.pop()
            if type(inside) is list:
                waiting += [inner for inner in inside if type(inner) in CONTAINERS]
                continue
            for name, inner in inside.items():
                plain = plain_name(name)
                if plain in ID_FIELDS:
                    for id_value in inner if type(inner) is list else (inner,):
                        if type(id_value) is str:
                            yield Reference(ID_FIELDS[plain], id_value, field)
                if type(inner) not in CONTAINERS or name in PROVENANCE or plain in SCHEMAS:
                    continue
                # The variables of a prompt have names of the caller's own, and a text among them is a text.
                is_named_freely = field == "prompt" and name == "variables" and type(inner) is dict
                waiting.append(list(inner.values()) if is_named_freely else inner)
