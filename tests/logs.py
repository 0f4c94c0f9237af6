"""Isolates the log configuration of a test."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog._config import BoundLoggerLazyProxy


@contextmanager
def isolated_logs() -> Iterator[None]:
    """Reset the log configuration before and after, so that a command logs to the stderr of its own test."""
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
            continue  # skip some hundred modules of libraries, which would be visited twice per test
        log = getattr(module, "log", None)
        if isinstance(log, BoundLoggerLazyProxy):
            vars(log).pop("bind", None)  # a cached logger
