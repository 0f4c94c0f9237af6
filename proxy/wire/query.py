"""The query of a request, read as leniently as any server reads it: `&` or `;` between pairs, names in any case."""

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

from proxy.wire.errors import RequestError
from proxy.wire.fields import FIELDS, fold_name
from proxy.wire.loggable import in_ascii

INCLUDE = "include"
MAX_PARAMETERS = 128
"""The most parameters of a query: each is decoded and compared by several policies."""
KEYS = frozenset({"apikey", "xapikey", "key", "accesstoken", "authorization"})
"""Parameters in which some clients send their key, in lower case and without `-` and `_`."""
_SEPARATOR = re.compile(r"[&;]")
_FIELDS_WITHOUT_UNDERSCORES = {name.replace("_", "") for name in FIELDS}


def query_pairs(query: str) -> Iterator[tuple[str, str]]:
    """Yield decoded names and values. Names are folded and lose their brackets: `Include[]` becomes `include`."""
    for pair in _SEPARATOR.split(query):
        name, _, value = pair.partition("=")
        yield fold_name(unquote_plus(name).partition("[")[0]), unquote_plus(value)


def without_keys(query: str) -> str:
    """Return a query without the parameters in which clients send keys: those for the gateway are not an upstream's."""
    pairs = _SEPARATOR.split(query)
    kept = [pair for pair in pairs if not _has_key(pair)]
    return query if len(kept) == len(pairs) else "&".join(kept)


def _has_key(pair: str) -> bool:
    name = fold_name(unquote_plus(pair.partition("=")[0]).partition("[")[0])
    return re.sub("[-_]", "", name).lower() in KEYS


def refuse_many_parameters(target: str) -> None:
    """Raises RequestError for a target of a request whose query has more than MAX_PARAMETERS."""
    query = target.partition("?")[2]
    if query.count("&") + query.count(";") >= MAX_PARAMETERS:
        message = f"The query has more than {MAX_PARAMETERS} parameters."
        raise RequestError(message, code="too_many_parameters")


def refuse_body_fields(query: str) -> None:
    """Raises RequestError for a parameter that an upstream could read as a field of the body, which policies check.

    `include` is the one field that the protocol also has in queries; a policy checks it there.
    """
    for name, _ in query_pairs(query):
        if name != INCLUDE and name.replace("_", "") in _FIELDS_WITHOUT_UNDERSCORES:
            shown = in_ascii(name, 64)
            message = f"The query has '{shown}', which is a field of the body; it is only allowed there."
            raise RequestError(message, code="query_not_allowed", param=shown)
