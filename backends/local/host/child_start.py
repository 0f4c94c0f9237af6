"""Starts the child process: runs `child_main` without what the packages above it import for the gateway.

    python -P backends/local/host/child_start.py FD

Python imports `backends` and `backends.local` before a module in them, and with these pydantic, chat templates and the
protocol: half of the time in which the child starts, and 18 MB in its memory. In their places it finds empty packages.
"""  # fmt: skip

import gc
import sys
from pathlib import Path
from types import ModuleType

LOCAL = Path(__file__).parents[1]


def main() -> None:
    """Run the child process."""
    for name, folder in (("backends", LOCAL.parent), ("backends.local", LOCAL)):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(folder)]
    gc.disable()  # what is imported stays
    from backends.local.host import child_main

    gc.enable()
    child_main.main()


if __name__ == "__main__":
    main()
