"""The first steps of a process: SIGHUP must not end it, Ctrl-C must, and its standard streams must be open.

Imports take half a second, and a model more. A reload requested in that time is done once the gateway serves. uvloop
aborts a process that lacks one of its standard streams.
"""

import os
import signal
import sys

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended: 128 plus the number of the signal."""
_held: list[int] = []


def hold_hang_ups() -> None:
    """Hold SIGHUP until `was_hung_up` is called, unless it is ignored or means that the terminal has closed."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and not is_terminal:
        signal.signal(signal.SIGHUP, lambda number, _frame: _held.append(number))


def exit_on_interrupt() -> None:
    """End the process at once on Ctrl-C until the gateway handles it: nothing has to be closed yet.

    A KeyboardInterrupt would be lost in a destructor, and pydantic makes an error of a schema of it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))


def was_hung_up() -> bool:
    """Return whether SIGHUP has arrived since `hold_hang_ups`, and reset that."""
    was, _held[:] = bool(_held), []
    return was


def open_standard_streams() -> None:
    """Connect each closed standard stream to the null device; Python has None in its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, mode))
