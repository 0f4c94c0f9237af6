"""`headgate audit verify | head | search`: whether audit files were altered, their heads, and what is in them.

`verify` and `head` read the files that they are given, and ask no gateway: what they find must not depend on it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from proxy.admin.api.audit import KNOWN, MOST, entry_of
from proxy.admin.audit_files import audit_paths, search_files
from proxy.admin.audit_filter import LineFilter
from proxy.commands.admin_client import add_gateway, client_of, config_of
from proxy.config.secrets import read_secret
from proxy.config.validation import ConfigError
from proxy.telemetry.audit import head_of
from proxy.telemetry.audit_chain import START, Head, verify

INTACT, ALTERED = 0, 1


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    audit = commands.add_parser("audit", help="check and search audit files: verify | head | search")
    verbs = audit.add_subparsers(required=True, metavar="verify | head | search")
    check = verbs.add_parser("verify", help="find the first line at which the chain breaks",
                             epilog="example: headgate audit verify --secret env:AUDIT_SECRET audit.jsonl")  # fmt: skip
    check.add_argument("file", type=Path, nargs="+", help="the files of one chain, the oldest first")
    check.add_argument("--secret", type=_secret, help="the secret of [audit]: env:NAME or file:PATH")
    check.add_argument("--after", type=_parse_head, default=START, metavar="HEAD",
                       help="the last line of the files before, if these are not there any more")  # fmt: skip
    check.add_argument("--expect", type=_parse_head, action="append", default=[], metavar="HEAD",
                       help="a line that must be there, from `head` or from the log; may be repeated")  # fmt: skip
    check.set_defaults(run=_verify)
    head = verbs.add_parser("head", help="print number and hash of the last line, to be kept elsewhere",
                            epilog="example: headgate audit head audit.jsonl")  # fmt: skip
    head.add_argument("file", type=Path)
    head.set_defaults(run=_head)
    _add_search(verbs)


def _add_search(verbs: Any) -> None:
    search = verbs.add_parser("search", help="print the newest lines, rotated files included, as JSON",
                              epilog="example: headgate audit search --config my.toml --decision refused")  # fmt: skip
    add_gateway(search)
    for name in KNOWN:
        search.add_argument(f"--{name.replace('_', '-')}", default="", help="only lines with this value")
    search.add_argument("--since", type=_time, default=None, help="only from this time on: 2026-11-30T10:00:00Z")
    search.add_argument("--until", type=_time, default=None, help="only up to this time")
    search.add_argument("--limit", type=int, default=100, help="how many lines at most, up to 500; default: 100")
    search.set_defaults(run=_search)


def _time(text: str) -> datetime:
    """Raises ArgumentTypeError for what is no time with a zone."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no time with its zone; write 2026-11-30T10:00:00Z")
    return at


def _search(options: argparse.Namespace) -> int:
    if not 0 < options.limit <= MOST:
        raise ConfigError(f"--limit: a number from 1 to {MOST}")
    named = {name: getattr(options, name) for name in KNOWN if getattr(options, name)}
    client = client_of(options)
    if client is not None:
        times = {name: at.isoformat() for name in ("since", "until") if (at := getattr(options, name)) is not None}
        found = client.ask("GET", "/audit", **named, **times, limit=options.limit)
        entries, is_complete = found["entries"], found["is_complete"]
    else:
        config = config_of(options)
        paths = audit_paths(config.audit, config.server.worker_count)
        if not paths:
            raise ConfigError("audit: this config has no [audit]")
        done = search_files(paths, LineFilter(named, options.since, options.until), options.limit)
        entries, is_complete = [entry_of(*pair) for pair in done.found], done.is_complete
    for entry in entries:
        print(orjson.dumps(entry).decode())
    if not is_complete:
        print("Older lines were not searched; narrow the time with --until.", file=sys.stderr)
    return INTACT


def _secret(place: str) -> SecretStr:
    """Raises ArgumentTypeError; argparse would print the value of any other error, which may be the secret."""
    try:
        return read_secret(place)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse_head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _verify(options: argparse.Namespace) -> int:
    secret: SecretStr | None = options.secret
    files: Sequence[Path] = options.file
    places: list[tuple[Path, int]] = []
    found = verify(
        _lines(files, places), key=None if secret is None else secret.get_secret_value().encode(), after=options.after,
        expected=options.expect,
    )  # fmt: skip
    if found.altered is not None:
        path, number = places[-1]
        hint = " Or --secret is not its secret, or --after is missing." if found.altered == 1 else ""
        print(f"{path}: the chain breaks at line {number}: it was changed, or lines before it were removed.{hint}")
        return ALTERED
    for head in found.contradicted:
        is_cut = head.seq > found.head.seq
        print(f"{files[-1]}: " + (f"the lines after {found.head.seq} are missing; {head.seq} was expected."
                                  if is_cut else f"line {head.seq} is not the one that was expected."))  # fmt: skip
    if found.contradicted:
        return ALTERED
    print(f"{', '.join(map(str, files))}: {found.count} lines, the chain is intact.")
    return INTACT


def _lines(files: Sequence[Path], places: list[tuple[Path, int]]) -> Iterator[bytes]:
    """Yield the lines of files; the last of `places` is where the last one is."""
    for path in files:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                places[:] = [(path, number)]
                yield line


def _head(options: argparse.Namespace) -> int:
    try:
        print(head_of(options.file))
    except ValueError as error:
        raise ConfigError(f"{options.file}: {error}") from error
    return INTACT
