"""`headgate usage`: what teams, callers, keys and models have used, read from `[state]`."""

import argparse
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from proxy.commands.options import add_config
from proxy.commands.shared_state import run_with_state
from proxy.config.build import Config, read
from proxy.config.validation import ConfigError
from proxy.usage.formats import FOCUS_BY, as_csv, as_focus, as_json, as_table
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
    add_config(command, required=True)
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
    config = read(options.config)
    is_focus = options.format == "focus"
    by = (*FOCUS_BY, *config.usage.metadata) if is_focus else _names(options.by)
    where = dict(_pair(text) for text in options.where)
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
    report: UsageReport = run_with_state(config, "usage", query)
    write: dict[str, Callable[[UsageReport], str]] = {
        "table": as_table,
        "csv": as_csv,
        "json": as_json,
        "focus": partial(as_focus, providers=_providers(config)),
    }
    print(write[options.format](report))
    return SUCCESS


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
