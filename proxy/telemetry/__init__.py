"""Telemetry: records of requests, traces, metrics, logs and the audit."""
