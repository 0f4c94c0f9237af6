"""Isolates the log configuration of a test."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog._config import BoundLoggerLazyProxy


@contextmanager
def isolated_logs() -> Iterator[None]:
    """Reset the log configuration before and after: a command then logs to the stderr of its own test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    _reset()
    yield
    root.handlers[:], root.level = handlers, level
    _reset()


def _reset() -> None:
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):
        if not name.startswith(("proxy.", "policies.", "backends.", "tests.")):
            continue  # some hundred modules of libraries, twice a test
        log = getattr(module, "log", None)
        if isinstance(log, BoundLoggerLazyProxy):
            vars(log).pop("bind", None)  # a cached logger
