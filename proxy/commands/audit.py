"""`headgate audit verify | head`: whether audit files were altered, and what to compare them with later."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from proxy.config.secrets import read_secret
from proxy.config.validation import ConfigError
from proxy.telemetry.audit import head_of
from proxy.telemetry.audit_chain import START, Head, verify

INTACT, ALTERED = 0, 1


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    audit = commands.add_parser("audit", help="check audit files: verify | head")
    verbs = audit.add_subparsers(required=True, metavar="verify | head")
    check = verbs.add_parser("verify", help="find the first line that was altered",
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
        print(f"{path}: line {number} was altered.{hint}")
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
