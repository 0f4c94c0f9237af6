"""`headgate audit verify`: whether an audit file was altered."""

import argparse
from pathlib import Path
from typing import Any

from proxy.telemetry.audit import first_altered

INTACT, ALTERED = 0, 1


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    audit = commands.add_parser("audit", help="check the audit file: verify")
    verbs = audit.add_subparsers(required=True, metavar="verify")
    verify = verbs.add_parser("verify", help="find the first line that was altered",
                              epilog="example: headgate audit verify audit.jsonl")  # fmt: skip
    verify.add_argument("file", type=Path)
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    with options.file.open("rb") as lines:
        count, altered = first_altered(lines)
    if altered is not None:
        print(f"{options.file}: line {altered} was altered.")
        return ALTERED
    print(f"{options.file}: {count} lines, the chain is intact.")
    return INTACT
