"""Checks between the tables of a config. Each function yields sentences that begin with the path of a key.

A fault stops the gateway: a call would be treated otherwise than the file says. A warning is something without effect.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import combinations
from typing import Any

from backends import Backend
from policies.support.globs import compile_globs, overlap
from proxy.config.admin_table import AdminTable
from proxy.config.process_tables import ServerTable
from proxy.config.schema import CallerTable, KeysTable, RelayTable, RouteTable
from proxy.config.validation import no_such, suggest_or_list
from proxy.identity.directory import ANONYMOUS, KEY
from proxy.identity.issuer_table import IssuerTable
from proxy.pricing.table import PriceTable
from proxy.rules.rule import Rule
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.telemetry.audit import AuditTable
from proxy.telemetry.recorder import RecordTable


def caller_faults(callers: Mapping[int, CallerTable]) -> Iterator[str]:
    """Keys that are missing, malformed or shared, and callers without a clear team."""
    known: dict[bytes, str] = {}
    for index, caller in callers.items():
        if (caller.key is None) == (caller.key_sha256 is None):
            yield f'caller[{index}]: give either key = "env:NAME" or key_sha256 = "<hex>"'
            continue
        if caller.key is not None and not KEY.fullmatch(caller.key.get_secret_value()):
            yield f"caller[{index}].key: a key may contain only letters, digits and -._~+/="
        if caller.digest in known:
            yield f"caller[{index}]: has the same key as {known[caller.digest]}; give each caller its own"
        known[caller.digest] = caller.name
    yield from _ambiguous_teams(callers)


def _ambiguous_teams(callers: Mapping[int, CallerTable]) -> Iterator[str]:
    """Callers in two teams, and those whose own name would make them members of another caller's team."""
    first: dict[str, tuple[int, str]] = {}
    for index, caller in callers.items():
        before, team = first.setdefault(caller.name, (index, caller.team))
        if caller.team != team:
            found = f"'{caller.name}' is in another team in caller[{before}]"
            yield f"caller[{index}].team: {found}; a caller has one team, and may have several keys"
    teams = {caller.team: index for index, caller in callers.items() if caller.team}
    for index, caller in callers.items():
        if not caller.team and caller.name in teams:
            yield (
                f"caller[{index}].name: '{caller.name}' is also the team of caller[{teams[caller.name]}]; "
                "give it a team, or it would share that team's cache and budgets"
            )


def selector_faults(
    policies: Sequence[Mapping[str, Any]], callers: Sequence[str], *, has_others: bool
) -> Iterator[str]:
    """Names of callers to which a policy would apply, but that no caller has: the rule would be lifted for one.

    With issued keys or issuers of tokens a name that no caller of the config has may be one of theirs.
    """
    names = [*callers] or [ANONYMOUS.name]
    for index, policy in enumerate(policies):
        globs = policy.get("callers", ["*"])
        if policy.get("mode") == "off" or not is_list_of_texts(globs):
            continue
        if not globs:
            yield f"policy[{index}].callers: it is empty, so that the policy applies to no call; leave it out for all"
        for glob in globs:
            if not has_others and not any(map(compile_globs([glob]).match, names)):
                yield f"policy[{index}].callers: '{glob}' matches no [[caller]]{suggest_or_list(glob, names)}"


def is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def relay_faults(
    relays: Mapping[int, RelayTable], backends: Mapping[str, Backend], faulty: Collection[str]
) -> Iterator[str]:
    """Relays to unknown backends and to those that have no other paths, and two of one path."""
    first: dict[str, int] = {}
    for index, relay in relays.items():
        backend = backends.get(relay.backend)
        if backend is None and relay.backend not in faulty:
            yield f"relay[{index}].backend: {no_such('backend', relay.backend, [*backends, *faulty])}"
        elif backend is not None and not backend.can_relay:
            yield f"relay[{index}].backend: '{backend.name}' has no other paths; only an upstream has"
        if first.setdefault(relay.path, index) != index:
            yield f"relay[{index}].path: there are two relays of {relay.path}"


def price_faults(prices: Mapping[int, PriceTable], backends: Collection[str]) -> Iterator[str]:
    """Prices of unknown backends."""
    for index, price in prices.items():
        if price.backend and price.backend not in backends:
            yield f"price[{index}].backend: {no_such('backend', price.backend, backends)}"


def file_faults(audit: AuditTable | None, record: RecordTable | None) -> Iterator[str]:
    """One file for two kinds of lines."""
    if audit and record and audit.path.resolve() == record.path.resolve():
        yield f"audit.path and record.path: both are {audit.path}; give each a file of its own"


def key_faults(keys: KeysTable | None, state: Store | None) -> Iterator[str]:
    """Issued keys that no other process can read."""
    if keys is not None and isinstance(state, MemoryStore):
        yield 'keys: "memory" is private to one process; issued keys need [state] use = "sqlite" or "redis"'


def operator_faults(admin: AdminTable | None, issuers: Iterable[IssuerTable]) -> Iterator[str]:
    """The faults of how operators sign in."""
    names, wanted = [issuer.name for issuer in issuers], None if admin is None else admin.oidc
    if wanted is not None and wanted.issuer not in names:
        yield f"admin.oidc.issuer: {no_such('issuer', wanted.issuer, names)}"


def issuer_faults(issuers: Mapping[int, IssuerTable]) -> Iterator[str]:
    """Issuers that cannot be distinguished, and those whose subjects could be taken for those of another one."""
    for (before, other), (index, issuer) in combinations(issuers.items(), 2):
        if other.name == issuer.name or other.url == issuer.url:
            key = "name" if other.name == issuer.name else "url"
            yield f"issuer[{index}].{key}: issuer[{before}] has it too; one may have several audiences, in a list"
        elif other.caller_prefix == issuer.caller_prefix:
            yield (
                f"issuer[{index}].caller_prefix: issuer[{before}] has the same; a subject is unique within its "
                f'issuer only, so give each a prefix of its own, such as "{issuer.name}:"'
            )


def listen_faults(server: ServerTable, admin: AdminTable | None, *, is_open: bool) -> Iterator[str]:
    """A gateway without keys that others can reach, and two listeners on one port."""
    if admin is not None and admin.port and admin.port == server.port:
        yield f"admin.port: {admin.port} is server.port too; give each listener a port of its own"
    if is_open and not _is_loopback(server.host):
        yield (
            f"server.host: {server.host} is reachable by others, and there is no [[caller]]; "
            "add one with a name and a key, or listen on 127.0.0.1"
        )


def worker_faults(server: ServerTable, state: Store | None) -> Iterator[str]:
    """Several processes with a state that each has for itself."""
    count = server.worker_count
    if count > 1 and isinstance(state, MemoryStore):
        yield f'server.workers: {count} processes cannot share [state] use = "memory"; use "sqlite" or "redis"'


def idle_limits(server: ServerTable) -> Iterator[str]:
    """A limit on bodies that none reaches, because the memory for all of them is smaller."""
    memory_bytes = server.memory_bytes // server.worker_count
    if server.max_body_bytes > memory_bytes:
        yield (
            f"server.max_body_bytes: a body of more than {memory_bytes} bytes gets 503, as "
            f"server.memory_bytes leaves {'a process' if server.worker_count > 1 else 'calls'} no more"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def idle_policies(
    rules: Sequence[Rule], policies: Sequence[Mapping[str, Any]], routes: Sequence[RouteTable]
) -> Iterator[str]:
    """Policies that change and refuse nothing, or refuse everything, and those for models that no route serves."""
    renamed = [name for rule in rules for pair in rule.policy.renames().items() for name in pair]
    served = [*(route.model for route in routes), *renamed]
    for index, (rule, policy) in enumerate(zip(rules, policies, strict=True)):
        if rule.mode == "off":
            continue
        if rule.policy.is_idle():
            yield f"policy[{index}]: {rule.name} has no effect with these settings"
        if rule.policy.refuses_all():
            yield f"policy[{index}]: {rule.name} refuses every call that it applies to"
        for glob in policy.get("models", ["*"]):
            if not any(overlap(glob, model) for model in served):
                yield f"policy[{index}].models: '{glob}' matches no model of a [[route]]"
