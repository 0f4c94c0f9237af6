"""Isolates the log configuration of a test."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog._config import BoundLoggerLazyProxy

OURS = ("proxy.", "policies.", "backends.", "tests.")
_seen: set[str] = set()  # names of modules
_loggers: list[BoundLoggerLazyProxy] = []  # of the seen modules


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
    if len(sys.modules) != len(_seen):
        for name in sys.modules.keys() - _seen:
            log = getattr(sys.modules[name], "log", None) if name.startswith(OURS) else None
            if isinstance(log, BoundLoggerLazyProxy):
                _loggers.append(log)
        _seen.update(sys.modules)
    for log in _loggers:
        vars(log).pop("bind", None)  # a cached logger
