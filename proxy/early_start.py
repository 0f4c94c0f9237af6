"""What a process needs before anything else: SIGHUP must not end it, and its standard streams must be open.

Between its start and its first answer lie half a second of imports and, with a model, more. A reload that is asked for
in that time is done once the gateway serves. uvloop aborts a process that begins without one of its standard streams.
"""

import os
import signal
import sys

_held: list[int] = []


def hold_hang_ups() -> None:
    """Note SIGHUP until `was_hung_up` is asked, unless it is ignored or means that the terminal has closed."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and not is_terminal:
        signal.signal(signal.SIGHUP, lambda number, _frame: _held.append(number))


def was_hung_up() -> bool:
    """Return whether SIGHUP has come since `hold_hang_ups`, once."""
    was, _held[:] = bool(_held), []
    return was


def open_standard_streams() -> None:
    """Let each standard stream that is closed read and write nothing: Python has None in its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, mode))
