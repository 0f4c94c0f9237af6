"""`headgate audit verify`: whether an audit file is what was written."""

import argparse
from pathlib import Path
from typing import Any

from proxy.telemetry.audit import first_altered

WHOLE, ALTERED = 0, 1


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    audit = commands.add_parser("audit", help="look after the audit file: verify")
    verbs = audit.add_subparsers(required=True, metavar="verify")
    verify = verbs.add_parser("verify", help="find the first line that was altered",
                              epilog="example: headgate audit verify audit.jsonl")  # fmt: skip
    verify.add_argument("file", type=Path)
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    with options.file.open("rb") as lines:
        count, altered = first_altered(lines)
    if altered is not None:
        print(f"{options.file}: line {altered} is not what was written.")
        return ALTERED
    print(f"{options.file}: {count} lines, the chain is whole.")
    return WHOLE
