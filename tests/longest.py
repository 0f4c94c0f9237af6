"""The files that take longest, whatever their number of tests: they start processes, and wait for them."""

FILES = (
    "test_supervisor_processes", "test_app", "test_background_processes", "backends/local/host/test_process_engine",
    "test_upstream_faults", "test_shared_engine_processes", "backends/local/host/test_gateway",
    "usage/test_usage_processes", "admin/api/test_schema", "stores/test_redis_cluster",
    "backends/upstream/websocket/test_hostile_upstreams", "backends/upstream/test_upstream", "deploy/test_compose",
    "test_websocket_faults", "wire/test_sse", "test_reload", "http/test_large_bodies", "clients/test_openai_node",
    "http/test_large_events", "backends/upstream/http1/test_connection", "stores/test_processes",
    "backends/local/host/test_gpu", "test_joint_reload", "cache/test_shared_flight", "http/test_server",
    "backends/local/host/test_engine_host", "backends/local/test_teams",
    "backends/local/scheduling/test_scheduler_grammars", "backends/local/host/test_child_process",
    "admin/console/test_console", "test_websocket_upstream", "http/test_write_timeout", "test_stored_state",
    "clients/test_openai_node_websocket", "backends/local/host/test_child_main", "admin/console/test_browser",
    "backends/local/model/test_template_sandbox", "deploy/test_telemetry", "backends/local/decoding/test_constrained",
    "cache/test_key_deep", "test_main", "state/test_journal", "deploy/test_chart", "telemetry/test_call_ends",
    "identity/test_sign_in",
)  # fmt: skip
RANKS = {f"tests/{file}.py": rank for rank, file in enumerate(FILES)}


def rank(test: str) -> int:
    """Return the place of a test's file, the longest first; all others come after them."""
    return RANKS.get(test.partition("::")[0], len(RANKS))
