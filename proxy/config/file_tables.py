"""A file -> its tables, each validated separately, so that one fault hides no other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from proxy.config.admin_table import AdminTable
from proxy.config.plugin_tables import collect
from proxy.config.positions import join
from proxy.config.process_tables import LogTable, ServerTable
from proxy.config.schema import CallerTable, KeysTable, RelayTable, RouteTable
from proxy.config.validation import M, validate
from proxy.identity.issuer_table import IssuerTable
from proxy.pricing.table import PriceTable
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable
from proxy.telemetry.vocabulary import TraceTable
from proxy.usage.table import UsageTable

TableOf = dict[str, Any]


class ConfigFile(BaseModel):
    """The names of the tables, and which of them are lists."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: TableOf = {}
    log: TableOf = {}
    trace: TableOf = {}
    admin: TableOf | None = None
    caller: list[TableOf] = []
    keys: TableOf | None = None
    issuer: list[TableOf] = []
    policy: list[TableOf] = []
    state: TableOf = {}
    audit: TableOf | None = None
    record: TableOf | None = None
    usage: TableOf = {}
    cache: TableOf | None = None
    backend: list[TableOf] = []
    route: list[TableOf] = []
    relay: list[TableOf] = []
    price: list[TableOf] = []


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that are no plug-ins, those of a list by their number in the file.

    One with a fault lacks the key that is at fault, or is missing if it cannot be without.
    """

    server: ServerTable
    log: LogTable
    trace: TraceTable
    admin: AdminTable | None
    keys: KeysTable | None
    audit: AuditTable | None
    record: RecordTable | None
    usage: UsageTable
    callers: Mapping[int, CallerTable]
    issuers: Mapping[int, IssuerTable]
    routes: Mapping[int, RouteTable]
    relays: Mapping[int, RelayTable]
    prices: Mapping[int, PriceTable]


def path_of(fault: str) -> str:
    """Return the path that a fault begins with."""
    return fault.partition(":")[0]


def is_in(path: str, other: str) -> bool:
    """Return whether a path is another one, or is in what that names."""
    return path == other or path.startswith((f"{other}.", f"{other}["))


def follows(fault: str, others: Iterable[str]) -> bool:
    """Return whether a fault between tables may only be due to one of these: a key at fault counts as left out."""
    path = path_of(fault)
    for other in map(path_of, others):
        is_about_missing = is_in(other, path) or (is_in(other, path.rpartition(".")[0]) and ": missing" in fault)
        if is_in(path, other) or is_about_missing:
            return True
    return False


def read_file(faults: list[str], typed: Mapping[str, Any]) -> ConfigFile:
    """Return the tables as they are written; those of a wrong kind are missing, and are faults."""
    if (file := collect(faults, validate, ConfigFile, typed, "")) is not None:
        return file
    return ConfigFile(**{
        name: value for name, value in typed.items()
        if name in ConfigFile.model_fields and collect([], validate, ConfigFile, {name: value}, "") is not None
    })  # fmt: skip


def read_plain(faults: list[str], file: ConfigFile) -> Tables:
    """Return the tables of a file that are no plug-ins, and add what is wrong with the others to `faults`."""

    def one(kind: type[M], typed: TableOf | None, name: str) -> M | None:
        if typed is None:
            return None
        found: list[str] = []
        table = collect(found, validate, kind, typed, name)
        if table is None:
            faults.extend(found[0].splitlines())
            bad = {path_of(fault) for fault in faults}
            sound = {
                key: value for key, value in typed.items() if not any(is_in(each, join(name, key)) for each in bad)
            }
            table = collect([], validate, kind, sound, name)
        return table

    def many(kind: type[M], typed: Sequence[TableOf], name: str) -> dict[int, M]:
        tables = {index: one(kind, table, f"{name}[{index}]") for index, table in enumerate(typed)}
        return {index: table for index, table in tables.items() if table is not None}

    return Tables(
        server=one(ServerTable, file.server, "server") or ServerTable(),
        log=one(LogTable, file.log, "log") or LogTable(),
        trace=one(TraceTable, file.trace, "trace") or TraceTable(),
        admin=one(AdminTable, file.admin, "admin"),
        keys=one(KeysTable, file.keys, "keys"),
        audit=one(AuditTable, file.audit, "audit"),
        record=one(RecordTable, file.record, "record"),
        usage=one(UsageTable, file.usage, "usage") or UsageTable(),
        callers=many(CallerTable, file.caller, "caller"),
        issuers=many(IssuerTable, file.issuer, "issuer"),
        routes=many(RouteTable, file.route, "route"),
        relays=many(RelayTable, file.relay, "relay"),
        prices=many(PriceTable, file.price, "price"),
    )
