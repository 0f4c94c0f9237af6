"""The ids in relayed requests: of files, vector stores, containers, batches ...

A request that names an id of another team, in its path, its query, its JSON or a field of its form, is refused in the
words for an unknown one. `relayed_answers.py` binds the ids.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies.support.walk import plain_name
from proxy.context import Context
from proxy.state.owner import Owner
from proxy.state.ownership import Ownership
from proxy.state.references import Reference
from proxy.state.relayed_answers import KINDS, MAX_ID_CHARS
from proxy.state.relayed_forms import FORM, FormField, boundary_of, split_form
from proxy.wire.errors import RequestError
from proxy.wire.fields import normalize
from proxy.wire.loggable import clip
from proxy.wire.query import query_pairs
from proxy.wire.relay import RelayRequest

MAX_IDS = 2_000
"""How many ids one request may name; OpenAI adds at most so many files to a vector store at once."""
MAX_TEXT_CHARS = 2 * MAX_ID_CHARS * MAX_IDS
"""The longest text that can be a list of ids; a longer one in such a field is a file."""
# Ends of the names of fields that hold ids, or arrays of ids: file_id, vector_store_ids, training_file, container ...
NAMES_OF_IDS = ("id", "ids", "file", "files", "container", "conversation")
FREE_FORM = frozenset({"metadata", "parameters", "schema", "arguments"})
# What an id looks like: a prefix, a separator, and a rest with a digit. No word of a path has that form.
_ID = re.compile(r"(?=.*[0-9])[A-Za-z][A-Za-z0-9]*[-_][A-Za-z0-9_-]{4,}")


_SEPARATORS = re.compile(r"""[\s,;|"'\[\]{}]+""")  # between ids in one text, also in a list in JSON
_PART = re.compile(r"(?=.*[0-9_-])[\w.:-]+")  # one of them: no word of a text has a digit or a separator
CheckField = Callable[[FormField], Awaitable[None]]
"""Raises what refuses a field of a form."""


class RelayedIds:
    """Checks the ids of relayed requests."""

    def __init__(self, ownership: Ownership, *, denies_unknown: bool = False) -> None:
        """`denies_unknown`: whether an id without an owner is refused too."""
        self._ownership = ownership
        self._denies_unknown = denies_unknown

    async def check(self, request: RelayRequest, context: Context) -> str | None:
        """Return the backend that keeps the first object in the path that is the team's own; None if there is none.

        Raises RequestError for an id of another team, and Unavailable while owners cannot be read.
        """
        size = len(request.body)
        named = await context.run(size, _named_ids, request)
        if len(named) > MAX_IDS:
            raise RequestError(f"The request names {len(named)} ids; the limit is {MAX_IDS}.", code="too_many_ids")
        await self._check_all(named, context)
        in_path = [Reference(kind, name, None) for name in request.path.split("/") for kind in KINDS]
        owners = await self._ownership.owners(in_path, context)
        return next((owner.target for owner in owners if owner is not None), None)

    def check_form(self, request: RelayRequest, check_field: CheckField, context: Context) -> RelayRequest:
        """Return the request with a form that is checked while it passes: its stream raises what `check` does.

        Raises RequestError for a form whose parts cannot be distinguished. `check_field` sees every field first.
        """
        content_type = request.types.get("Content-Type", "")
        if request.stream is None or not content_type.lower().startswith(FORM):
            return request
        return replace(request, stream=self._checked(request.stream, boundary_of(content_type), check_field, context))

    async def _checked(
        self, chunks: AsyncIterator[bytes], boundary: bytes, check_field: CheckField, context: Context
    ) -> AsyncIterator[bytes]:
        async for data, field in split_form(chunks, boundary):
            if field is not None:
                await check_field(field)
                if field.holds_id(NAMES_OF_IDS):
                    _check_length(field)
                    await self._check_all([*dict.fromkeys(_ids_of(field.text))], context)
            if data:
                yield data
            await asyncio.sleep(0)  # one chunk can have many parts

    async def _check_all(self, named: Sequence[str], context: Context) -> None:
        wanted = [Reference(kind, value, "id") for value in named for kind in KINDS]
        owners = await self._ownership.owners(wanted, context)
        for position, value in enumerate(named):
            self._check(value, owners[position * len(KINDS) : (position + 1) * len(KINDS)], context)

    def _check(self, value: str, owners: Sequence[Owner | None], context: Context) -> None:
        known = [owner for owner in owners if owner is not None]
        is_denied = self._denies_unknown and not known and _ID.fullmatch(value) is not None
        if is_denied or any(owner.team != context.caller.team for owner in known):
            raise unknown_object(value)


def unknown_object(value: str) -> RequestError:
    """Return the refusal of an id that is unknown, or another team's: both have the same words."""
    return RequestError(f"No object with id '{clip(value, 80)}' found.", status=404, param="id")


def _named_ids(request: RelayRequest) -> list[str]:
    """Return every text of a request that may be an id, each once."""
    names = [*request.path.split("/"), *(value for _, value in query_pairs(request.query) if request.query)]
    body = {} if request.call is None else request.call.body
    return list(dict.fromkeys(found for name in (*names, *_ids_in(body)) for found in _ids_of(name)))


def _ids_of(text: str) -> Iterator[str]:
    """Yield what a text can name: itself, and each of the ids in a list of them.

    White space and invisible characters around an id do not hide it: an upstream may overlook them.
    """
    if len(text) <= MAX_ID_CHARS or len(text := normalize(text)) <= MAX_TEXT_CHARS:
        parts = filter(_PART.fullmatch, _SEPARATORS.split(text))
        yield from (part for part in (text, *parts) if part and len(part) <= MAX_ID_CHARS)


def _check_length(field: FormField) -> None:
    """Raises RequestError for more ids than are read of a field. A long text in `file` is a file, and no id."""
    if not field.is_whole and field.holds_id(("id", "ids")):
        raise RequestError("A field of the form has more ids than are relayed; send them as JSON.", code="too_many_ids")


def _ids_in(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a body that stand in fields for ids, at any depth but in free-form objects."""
    waiting: list[tuple[Any, bool]] = [(body, False)]  # a value, and whether its field holds ids
    while waiting:
        value, holds_ids = waiting.pop()
        if isinstance(value, str) and holds_ids:
            yield value
        elif isinstance(value, list):
            waiting += [(inner, holds_ids) for inner in value]
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, str | list | dict) and (plain := plain_name(name)) not in FREE_FORM:
                    waiting.append((inner, plain.endswith(NAMES_OF_IDS)))
