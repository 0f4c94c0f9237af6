"""Logs of one test stay in it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog._config import BoundLoggerLazyProxy


@contextmanager
def kept_apart() -> Iterator[None]:
    """Before and after, logs go where they go by default: a command sends them to the stderr of its own test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    _as_by_default()
    yield
    root.handlers[:], root.level = handlers, level
    _as_by_default()


def _as_by_default() -> None:
    structlog.reset_defaults()
    for module in list(sys.modules.values()):
        log = getattr(module, "log", None)
        if isinstance(log, BoundLoggerLazyProxy):
            vars(log).pop("bind", None)  # one that has settled on where to write
