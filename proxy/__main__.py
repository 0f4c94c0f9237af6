"""The command line: `headgate serve | check | explain | policy | model | audit | cache | key | usage | whois` ...

Results on stdout, logs on stderr. Exit status 0: success; 1: the answer is no, or a crash; 2: the input is at fault.
"""

import gc
import sys
from collections.abc import Sequence

from proxy.early_start import hold_hang_ups, open_standard_streams

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended: 128 and the number of the signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    if arguments[:1] == ["serve"]:
        hold_hang_ups()
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # before anything is served
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
