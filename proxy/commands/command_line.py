"""Reads a command line, and runs its command."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from proxy.commands.outcome import INPUT_ERROR, SUCCESS, reason
from proxy.config.validation import ConfigError
from proxy.telemetry.logs import LogTally, configure_logs

SUBJECTS = {
    "serve": ("serve",),
    "show": ("check", "explain"),
    "reload": ("reload",),
    "policy": ("policy",),
    "model": ("model",),
    "audit": ("audit",),
    "cache": ("cache",),
    "key": ("key",),
    "usage": ("usage",),
    "identity": ("whois", "block", "unblock"),
    "backup": ("backup",),
}
"""The modules that add commands, and the commands' names. Only the module of the given command is imported."""


class CommandParser(argparse.ArgumentParser):
    """Prints the usage of one command for its unknown arguments; argparse would print that of all commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments of this command; argparse calls it for the parser of each command and verb."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = _read(arguments)
    command: Callable[[argparse.Namespace], int] | None = options.run
    is_server = command is None
    tally = LogTally()
    logs = configure_logs(level=logging.INFO if is_server else logging.ERROR, final=is_server, tally=tally)
    try:
        if command is None:
            from proxy.commands.serve import serve_until_stopped

            code = serve_until_stopped(options, logs, tally)
        else:
            code = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; Python would write at its end again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    except (ConfigError, OSError) as error:
        print(reason(error), file=sys.stderr)
        return INPUT_ERROR
    else:
        return code
    finally:
        logs.close()


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, `run` among them, which is None for the server. Raises SystemExit for what is not valid."""
    parser = CommandParser(
        prog="headgate",
        description="The gateway in front of every model.",
        epilog="example: headgate serve --config my.toml",
    )
    parser.add_argument("--version", action="version", version=f"headgate {version('headgate')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    named = [subject for subject, names in SUBJECTS.items() if arguments and arguments[0] in names]
    for subject in named or SUBJECTS:
        import_module(f"proxy.commands.{subject}").add_to(commands)
    return parser.parse_args(arguments)
