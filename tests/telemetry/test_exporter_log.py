"""What exporters log of an outage of a collector."""

import logging

import pytest

from proxy.telemetry.exporter_log import ExporterLog

LIBRARY = logging.getLogger(__name__)


class LoggingExporter:
    """An exporter that logs each retry."""

    def export(self, retries: int) -> None:
        for number in range(retries):
            LIBRARY.warning("retry %d", number)


def test_the_first_line_of_each_outage_passes(caplog: pytest.LogCaptureFixture):
    """It has the reason."""
    exporter = LoggingExporter()
    log = ExporterLog(exporter)
    exporter.export(2)
    exporter.export(2)
    log.reset()
    exporter.export(2)
    log.close()

    assert [record.getMessage() for record in caplog.records] == ["retry 0"] * 2


def test_all_lines_pass_after_the_end(caplog: pytest.LogCaptureFixture):
    """The loggers of an exporter are those of the process."""
    exporter = LoggingExporter()
    ExporterLog(exporter).close()
    exporter.export(2)

    assert len(caplog.records) == 2
