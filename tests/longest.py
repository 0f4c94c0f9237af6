"""The files that take longest, whatever their number of tests: they start processes, and wait for them."""

FILES = (
    "test_background_processes", "test_supervisor_processes", "test_hung_workers", "test_app", "backends/local/host/test_gateway",
    "backends/local/host/test_process_engine", "admin/api/test_schema", "test_shared_engine_processes",
    "test_rolling_restart", "clients/test_openai_node", "backends/local/host/test_child_main", "test_main",
    "clients/test_openai_node_websocket", "admin/console/test_browser", "stores/test_processes",
    "backends/local/host/test_engine_host", "test_drain_delay", "deploy/test_compose", "test_reload", "test_pool_kill",
    "test_second_signal", "stores/test_redis_cluster", "backends/local/decoding/test_constrained_demo",
    "telemetry/test_logs", "cache/test_shared_flight", "backends/training/test_wheel", "test_background",
    "backends/local/host/test_thread_engine", "usage/test_usage_processes", "http/test_large_bodies",
    "backends/upstream/http1/test_parser_differential", "http/test_large_events", "backends/local/test_teams",
    "cache/test_key_deep", "backends/local/scheduling/test_scheduler_grammars", "deploy/test_chart", "test_limits_over_time", "test_stored_state",
)  # fmt: skip
RANKS = {f"tests/{file}.py": rank for rank, file in enumerate(FILES)}


def rank(test: str) -> int:
    """Return the place of a test's file, the longest first; all others come after them."""
    return RANKS.get(test.partition("::")[0], len(RANKS))
