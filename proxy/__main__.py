"""The command line: `headgate serve | check | explain | policy | model | audit | cache | key | usage | whois` ...

Results on stdout, logs on stderr. Exit status 0: success; 1: the answer is no, or a crash; 2: the input is at fault.
"""

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    gc.disable()  # what is imported stays, and most of a start is imports: collections would only look through it
    try:
        from proxy.commands.command_line import run
    finally:
        gc.enable()
    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
