"""`python -m tests.bench.silent serve ...`: Headgate without a line in its log for each request."""

import logging
import sys
from functools import partial

from proxy.commands import command_line as command
from proxy.telemetry.logs import configure_logs


def main() -> int:
    """Serve with the logs of errors only."""
    silent = partial(configure_logs, final=True)
    command.configure_logs = lambda **options: silent(tally=options["tally"], level=logging.ERROR)
    return command.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
