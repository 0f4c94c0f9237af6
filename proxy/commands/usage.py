"""`headgate usage`: what teams, callers, keys and models have used, by a gateway that runs, or read from `[state]`."""

import argparse
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from proxy.commands.admin_client import AdminClient, add_gateway, client_of, config_of
from proxy.commands.shared_state import run_with_state
from proxy.config.build import Config
from proxy.config.validation import ConfigError
from proxy.usage.formats import FOCUS_BY, as_csv, as_focus, as_json, as_table, report_of
from proxy.usage.query import DIMENSIONS, PERIODS, UsageReport, read_usage
from proxy.usage.times import KNOWN, parse_time, parse_zone

SUCCESS = 0
FORMATS = ("table", "csv", "json", "focus")


def add_to(commands: Any) -> None:
    """Add this command to a parser."""
    command = commands.add_parser(
        "usage", help="print what teams, callers, keys and models have used",
        epilog="example: headgate usage --config my.toml --since yesterday --by team,model",
    )  # fmt: skip
    add_gateway(command)
    command.add_argument("--since", default="today", metavar="TIME", help=f"from here on: {KNOWN}; default: today")
    command.add_argument("--until", default="now", metavar="TIME", help="up to here, likewise; default: now")
    dimensions = ", ".join((*DIMENSIONS, *PERIODS))
    command.add_argument("--by", default="team", metavar="NAMES",
                         help=f"a line for each: {dimensions}, keys of [usage] metadata; default: team")  # fmt: skip
    command.add_argument("--where", action="append", default=[], metavar="NAME=VALUE",
                         help="only this team, caller ...; may be repeated")  # fmt: skip
    command.add_argument("--tz", default="UTC", metavar="ZONE", help="the zone of days and times; default: UTC")
    command.add_argument("--format", choices=FORMATS, default="table",
                         help="focus: CSV in columns of FOCUS 1.3, an hour and all labels in each line")  # fmt: skip
    command.set_defaults(run=_print_usage)


def _print_usage(options: argparse.Namespace) -> int:
    config = None if options.config is None else config_of(options)
    where = dict(_pair(text) for text in options.where)
    client = client_of(options)
    if client is not None:
        report = _ask(client, options, where)
    else:
        report = _read(config_of(options) if config is None else config, options, where)
    write: dict[str, Callable[[UsageReport], str]] = {
        "table": as_table,
        "csv": as_csv,
        "json": as_json,
        "focus": partial(as_focus, providers={} if config is None else _providers(config)),
    }
    print(write[options.format](report))
    return SUCCESS


def _ask(client: AdminClient, options: argparse.Namespace, where: Mapping[str, str]) -> UsageReport:
    """Return the report of a gateway. Raises ConfigError."""
    is_focus, by = options.format == "focus", _names(options.by)
    if is_focus:
        tags = client.ask("GET", "/spend", since="today")["dimensions"]
        by = (*FOCUS_BY, *(name for name in tags if name not in (*DIMENSIONS, *PERIODS)))
    asked = {"by": ",".join(by), "since": options.since, "until": options.until, "where": urlencode(where)}
    return report_of(client.ask("GET", "/usage", **asked, tz="UTC" if is_focus else options.tz))


def _read(config: Config, options: argparse.Namespace, where: Mapping[str, str]) -> UsageReport:
    """Return the report that the state of a config has. Raises ConfigError."""
    is_focus = options.format == "focus"
    by = (*FOCUS_BY, *config.usage.metadata) if is_focus else _names(options.by)
    _check(config, (*by, *where))
    try:
        zone = UTC if is_focus else parse_zone(options.tz)
        now = datetime.now(zone)
        since, until = parse_time(options.since, now), parse_time(options.until, now)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if since >= until:
        raise ConfigError(f"--since: {since.isoformat()} is not before {until.isoformat()}")
    query = partial(read_usage, times=(since, until), by=by, where=where, zone=zone)
    return run_with_state(config, "usage", query)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--where: '{text}' is no NAME=VALUE")
    return name, value


def _check(config: Config, names: tuple[str, ...]) -> None:
    """Raises ConfigError for a dimension that is not counted."""
    known = (*DIMENSIONS, *PERIODS, *config.usage.metadata)
    for name in names:
        if name not in known:
            raise ConfigError(f"'{name}' is not counted; known are {', '.join(known)} ([usage] metadata adds more)")


def _providers(config: Config) -> Mapping[str, str]:
    return {name: backend.provider or name for name, backend in config.backends.items()}
