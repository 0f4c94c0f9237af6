"""What exporters log: of an outage of a collector the first line only, since they log every retry of every batch."""

import logging


class ExporterLog(logging.Filter):
    """Passes the first line of an exporter since its last success: it has the reason of an outage."""

    def __init__(self, exporter: object) -> None:
        super().__init__()
        self._has_passed = False
        self._loggers = [logging.getLogger(kind.__module__) for kind in type(exporter).__mro__]
        for logger in self._loggers:
            logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is the first one."""
        del record
        is_first, self._has_passed = not self._has_passed, True
        return is_first

    def reset(self) -> None:
        """Note a success."""
        self._has_passed = False

    def close(self) -> None:
        """Let all lines pass again."""
        for logger in self._loggers:
            logger.removeFilter(self)
