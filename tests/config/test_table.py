"""Tables take the types of TOML as they are."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, get_args, get_origin

import pytest
from pydantic import ValidationError

from backends import Backend
from policies import Policy
from proxy.config import process_tables, schema
from proxy.config.plugins import load, plugin_names
from proxy.config.table import Table
from proxy.identity.issuer_table import IssuerTable
from proxy.pricing.table import PriceTable
from proxy.stores import Store
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable
from proxy.telemetry.vocabulary import TraceTable

PACKAGES: dict[str, type[Table]] = {"policies": Policy, "backends": Backend, "proxy.stores": Store}


def is_table(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Table) and found is not Table


TABLES = [
    *(found for module in (process_tables, schema) for found in vars(module).values() if is_table(found)),
    *(load(name, package, kind) for package, kind in PACKAGES.items() for name in plugin_names(package)),
    PriceTable, IssuerTable, AuditTable, RecordTable, TraceTable,
]  # fmt: skip
CONTAINERS = (tuple, list, dict)
ALSO_TAKEN = {float: (int,), Decimal: (int, float)}
"""What a value of a type may be written as besides."""


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.__module__}.{table.__name__}")
def test_no_type_is_converted_to_another(table: type[Table]):
    """`max = true` is not 1, "8" and 8.0 are not 8: in no table of the config and in no plug-in."""
    found = [
        (name, value)
        for name, field in table.model_fields.items()
        for value in (True, 8, 8.0, 0.5, "8", "true", [True], ["8"], [8.0])
        if is_taken(table, name, value) and not may_take(field.annotation, value)
    ]

    assert found == []


def is_taken(table: type[Table], name: str, value: Any) -> bool:
    """Whether no type is at fault with this value: it may be too large, or not fit another key."""
    try:
        table.model_validate({name: value})
    except ValidationError as error:
        return not any(problem["loc"][:1] == (name,) for problem in error.errors())
    return True


def may_take(annotation: Any, value: Any) -> bool:
    """Whether a type has values of the type of this one: that of TOML, or one that is written as text."""
    value, kinds = (value[0], [*elements(annotation)]) if isinstance(value, list) else (value, [*scalars(annotation)])
    if isinstance(value, str):
        return any(kind not in (bool, int, float, Decimal, type(None)) for kind in kinds)
    return any(type(value) in (kind, *ALSO_TAKEN.get(kind, ())) for kind in kinds)


def scalars(annotation: Any) -> Iterator[Any]:
    """Yield the types that a type consists of, without those in lists and tables."""
    if get_origin(annotation) in CONTAINERS:
        return
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from scalars(part)


def elements(annotation: Any) -> Iterator[Any]:
    """Yield the types in the lists that a type consists of."""
    for part in get_args(annotation):
        yield from scalars(part) if get_origin(annotation) in CONTAINERS else elements(part)
