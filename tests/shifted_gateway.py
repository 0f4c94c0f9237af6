"""`headgate`, for which the time of day is shifted by the seconds in a file: its first argument.

A process cannot set the machine's clock for itself alone, so what Python tells the time by is replaced before anything
of the gateway is imported. Everything else is the gateway as it is run.
"""

import datetime as dt
import sys
import time
from pathlib import Path

SHIFT = Path(sys.argv.pop(1))
_real = time.time


def shifted() -> float:
    return _real() + float(SHIFT.read_text() or 0)


class ShiftedDatetime(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "ShiftedDatetime":
        return cls.fromtimestamp(shifted(), tz)


if __name__ == "__main__":
    time.time = shifted
    vars(dt)["datetime"] = ShiftedDatetime
    from proxy.__main__ import main

    sys.exit(main())
