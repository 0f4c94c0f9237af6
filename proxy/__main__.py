"""The command line: `headgate serve | check | explain | policy | model | audit | cache | key | usage | whois` ...

Results on stdout, logs on stderr. Exit status 0: success; 1: the answer is no, or a crash; 2: the input is at fault.
"""

import gc
import sys
from collections.abc import Sequence

from proxy.early_start import INTERRUPTED, exit_on_interrupt, hold_hang_ups, open_standard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    if arguments[:1] == ["serve"]:
        hold_hang_ups()
        exit_on_interrupt()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    gc.disable()  # what is imported stays, and most of a start is imports: collections would only look through it
    try:
        from proxy.commands.command_line import run
    finally:
        gc.enable()
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
