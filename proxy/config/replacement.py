"""A config that replaces the running one: its changes, and the parts of the running one that it keeps."""

from proxy.config.build import Config
from proxy.config.difference import RESTARTED_SERVER_KEYS, differences, hidden_differences, with_restarted_tables
from proxy.config.schema import has_teams
from proxy.config.validation import ConfigError

LASTING = (
    "admin",
    "state",
    "state_settings",
    "state_ttl_s",
    "state_secret",
    "keys",
    "audit",
    "record",
    "usage",
    "prices",
    "log",
)


def has_other_cache(old: Config, new: Config) -> bool:
    """Return whether two configs need different caches."""
    return old.cache != new.cache or old.cache_store is not new.cache_store


def changes_between(running: Config, new: Config) -> list[str]:
    """Return the differences between two configs, replaced secrets included."""
    lines = differences(running.tables, new.tables)
    changed = [
        f"backend[{name}]"
        for name, backend in new.backends.items()
        if name in running.backends and running.backends[name] is not backend
    ]
    known = {(caller.name, caller.digest) for caller in running.callers}
    names = {caller.name for caller in running.callers}
    changed += dict.fromkeys(
        f"caller[{caller.name}]"
        for caller in new.callers
        if caller.name in names and (caller.name, caller.digest) not in known
    )
    if running.cache is not None and new.cache is not None and has_other_cache(running, new):
        changed.append("cache")
    return [*lines, *hidden_differences(changed, lines)]


def keep_process_state(running: Config, new: Config) -> Config:
    """Return a new config with the running one's process-wide parts. Raises ConfigError if it opens the gateway."""
    server = {key: getattr(running.server, key) for key in RESTARTED_SERVER_KEYS}
    unknown_ids = running.state_settings.unknown_ids
    several = has_teams(new.callers, running.keys, new.issuers)
    merged = new.model_copy(
        update={
            **{name: getattr(running, name) for name in LASTING},
            "server": new.server.model_copy(update=server),
            "tables": with_restarted_tables(new.tables, running.tables),
            "unknown_ids": unknown_ids or ("deny" if several else "allow"),
        }
    )
    if merged.is_open and not running.is_open:
        raise ConfigError("caller: without any, every client would be answered; that needs a restart")
    return merged
