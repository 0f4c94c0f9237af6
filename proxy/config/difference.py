"""The differences between two configs, one line for each key, and which of them need a restart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from proxy.wire.loggable import clip

RESTARTED_TABLES = frozenset({"admin", "state", "keys", "usage", "audit", "record", "price", "log"})
"""Tables whose parts live as long as the process."""
RESTARTED_SERVER_KEYS = frozenset({
    "host", "port", "tls_cert", "tls_key", "workers", "drain_s", "drain_delay_s", "max_body_bytes", "max_head_bytes",
    "memory_bytes", "head_timeout_s", "write_timeout_s", "idle_timeout_s", "max_connections",
})  # fmt: skip
"""Keys of [server] that belong to its listener."""
NEEDS_RESTART = " (needs a restart)"
UNSHOWN_VALUES = frozenset({"headers", "query", "proxy", "proxy_auth", "token_command", "key_sha256"})
"""Keys whose values may be secrets: they are not shown."""
MAX_VALUE_CHARS = 80
NONE: Any = object()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each key whose value differs in two files' tables, in the order of the files."""
    return [
        f"{path}: {change}{NEEDS_RESTART if _needs_restart(path) else ''}" for path, change in _compare("", old, new)
    ]


def with_restarted_tables(tables: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's tables, but what needs a restart as it is in the tables of a first file."""
    merged = {name: table for name, table in tables.items() if name not in RESTARTED_TABLES}
    merged |= {name: table for name, table in first.items() if name in RESTARTED_TABLES}
    new, old = tables.get("server", {}), first.get("server", {})
    if isinstance(new, dict) and isinstance(old, dict):
        free = {key: value for key, value in new.items() if key not in RESTARTED_SERVER_KEYS}
        merged["server"] = free | {key: value for key, value in old.items() if key in RESTARTED_SERVER_KEYS}
    return merged


def hidden_differences(changed: Iterable[str], lines: Sequence[str]) -> list[str]:
    """Return a line for each path of a part that has changed although no line says so: its secret was replaced."""
    return [
        f"{path}: a secret that it names has changed"
        for path in changed
        if not any(line.startswith((f"{path}.", f"{path}:")) for line in lines)
    ]


def _compare(path: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    """Yield the path of each key that differs, and how."""
    if isinstance(old, dict | list) and type(old) is type(new) and _is_table(old) and _is_table(new):
        before, after = _members(old), _members(new)
        for name in [*before, *(name for name in after if name not in before)]:
            inner = name if name.startswith("[") or not path else f".{name}"
            yield from _compare(f"{path}{inner}", before.get(name, NONE), after.get(name, NONE))
        if list(before) != list(after) and sorted(before) == sorted(after) and isinstance(old, list):
            yield path, "another order"
    elif old != new:
        yield path, _change(path, old, new)


def _is_table(value: object) -> bool:
    """Whether a value is a table or a list of tables."""
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(each, dict) for each in value))


def _members(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys of a table, or the tables of a list by their names, or else by what they are and their number."""
    if isinstance(value, Mapping):
        return dict(value)
    members: dict[str, Any] = {}
    for table in value:
        name = str(table.get("name") or table.get("use") or table.get("path") or table.get("model") or "")
        count = sum(known == name or known.startswith(f"{name} #") for known in members)
        members[name if not count else f"{name} #{count + 1}"] = table
    return {f"[{name}]": table for name, table in members.items()}


def _change(path: str, old: Any, new: Any) -> str:
    if old is NONE:
        return "added" if _is_table(new) else f"added, {_shown(path, new)}"
    if new is NONE:
        return "removed"
    return f"{_shown(path, old)} -> {_shown(path, new)}"


def _shown(path: str, value: Any) -> str:
    if UNSHOWN_VALUES.intersection(path.split(".")):
        return "..."
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    shown = clip(text, MAX_VALUE_CHARS)  # a part of a key might not be found any more
    return shown if len(text) <= MAX_VALUE_CHARS else f"{shown}..."


def _needs_restart(path: str) -> bool:
    table, _, key = path.partition(".")
    return table in RESTARTED_TABLES or (table == "server" and (not key or key in RESTARTED_SERVER_KEYS))
