"""The names, units and buckets of all metrics.

Standard ones are those of HTTP and databases (semantic conventions v1.45.0) and of GenAI (v0.1.0); what has no standard
is `headgate.*`. `proxy/admin/README.md` says what each one means.

Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/v0.1.0/docs/gen-ai/client-inference.md
Source: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
Source: https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
"""

from proxy.telemetry.instruments import Metric

HTTP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
GENAI_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
STORE_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
SHORT_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Of what lasts less than a millisecond as a rule: lookups and delays inside the process, in seconds."""

ERROR, TARGET, TEAM, ROUTE = "error.type", "headgate.target", "headgate.team", "headgate.route"
MODEL = "gen_ai.request.model"
INFERENCE = ("gen_ai.operation.name", "gen_ai.provider.name", MODEL, TEAM, ROUTE, TARGET)

HTTP_DURATION = Metric(
    "http.server.request.duration", "histogram", "s", "Duration of HTTP requests, from head to end of answer.",
    ("http.request.method", "url.scheme", "http.route", "http.response.status_code", ERROR), HTTP_BOUNDS,
)  # fmt: skip
ACTIVE = Metric(
    "http.server.active_requests", "gauge", "{request}", "HTTP requests that are being answered.",
    ("http.request.method", "url.scheme"),
)  # fmt: skip

CALLS = Metric(
    "headgate.calls", "counter", "{call}", "Calls of models, however they came and ended.",
    (TEAM, MODEL, ROUTE, TARGET, "headgate.transport", "headgate.outcome", ERROR),
)  # fmt: skip
INFERENCE_DURATION = Metric(
    "gen_ai.client.inference.duration", "histogram", "s", "Duration of calls of a backend, all attempts included.",
    (*INFERENCE, ERROR), GENAI_BOUNDS,
)  # fmt: skip
FIRST_CHUNK = Metric(
    "gen_ai.client.inference.time_to_first_chunk", "histogram", "s", "Time until the first event of a stream.",
    INFERENCE, GENAI_BOUNDS,
)  # fmt: skip
PER_TOKEN = Metric(
    "gen_ai.server.time_per_output_token", "histogram", "s", "Time per output token after the first event of a stream.",
    INFERENCE, TOKEN_BOUNDS,
)  # fmt: skip
MODALITY = "gen_ai.token.modality"
USED_TOKENS = {
    field: Metric(f"gen_ai.client.inference.usage.{name}", "counter", "{token}", text, (*INFERENCE, MODALITY))
    for field, name, text in (
        ("input_tokens", "input_tokens", "Input tokens that backends used, cached ones included."),
        ("output_tokens", "output_tokens", "Output tokens that backends generated, reasoning included."),
        ("cached_tokens", "cache_read.input_tokens", "Input tokens that the provider read from its own cache."),
        ("cache_write_tokens", "cache_write.input_tokens", "Input tokens that the provider wrote to its own cache."),
        ("reasoning_tokens", "reasoning.output_tokens", "Output tokens of reasoning."),
    )
}
"""By the field of the record that has the count."""

COST = Metric("headgate.cost", "counter", "{USD}", "What calls of models cost, in US dollars.", INFERENCE)
UNPRICED = Metric(
    "headgate.unpriced", "counter", "{call}", "Calls of models whose tokens have no price that is known.", INFERENCE
)  # fmt: skip
SAVED_COST = Metric(
    "headgate.cache.saved_cost", "counter", "{USD}", "What answers from the cache would have cost, in US dollars.",
    (TEAM, MODEL, ROUTE),
)  # fmt: skip

CACHE_LOOKUPS = Metric(
    "headgate.cache.lookups", "counter", "{call}", "What the cache did for a call, and why.",
    (TEAM, ROUTE, "headgate.cache.outcome", "headgate.cache.reason"),
)  # fmt: skip
CACHE_DURATION = Metric(
    "headgate.cache.lookup.duration", "histogram", "s", "Duration of cache lookups.", ("headgate.cache.outcome",),
    SHORT_BOUNDS,
)  # fmt: skip
CACHE_BYTES = Metric(
    "headgate.cache.served", "counter", "By", "Bytes of answers that came from the cache.", (TEAM, ROUTE)
)  # fmt: skip
CACHE_TOKENS = Metric(
    "headgate.cache.saved_tokens", "counter", "{token}", "Tokens of answers for which no backend had to be called.",
    (TEAM, MODEL, ROUTE, "gen_ai.token.type"),
)  # fmt: skip

POLICY_DECISIONS = Metric(
    "headgate.policy.decisions", "counter", "{decision}", "Decisions of policies, but for calls that passed unchanged.",
    ("headgate.policy", "headgate.policy.decision", ERROR),
)  # fmt: skip
RETRIES = Metric(
    "headgate.retries", "counter", "{attempt}", "Attempts beyond a call's first.", (ROUTE, TARGET)
)  # fmt: skip
REPAIRS = Metric(
    "headgate.stream.repairs",
    "counter",
    "{repair}",
    "What was mended in streams of backends, by the field or event that was at fault.",
    (TARGET, "headgate.repair"),
)
QUEUE_DURATION = Metric(
    "headgate.target.queue.duration", "histogram", "s", "How long calls waited for a place at a target.", (TARGET,),
    GENAI_BOUNDS,
)  # fmt: skip
ATTEMPTS = Metric(
    "headgate.target.attempts", "counter", "{attempt}", "Attempts at a target, by what they came to.",
    (TARGET, "http.response.status_code", ERROR),
)  # fmt: skip
TEAM_CALLS = Metric(
    "headgate.team.calls", "gauge", "{call}", "Calls and WebSocket connections of a team that are open.", (TEAM,)
)  # fmt: skip
TARGET_IN_FLIGHT = Metric("headgate.target.in_flight", "gauge", "{call}", "Calls at a target.", (TARGET,))
TARGET_WAITING = Metric(
    "headgate.target.waiting", "gauge", "{call}", "Calls that wait for a place at a target.", (TARGET,)
)  # fmt: skip
TARGET_EJECTIONS = Metric(
    "headgate.target.ejections", "counter", "{ejection}", "How often a target's breaker opened.", (TARGET,)
)  # fmt: skip
BREAKER = Metric(
    "headgate.target.breaker", "gauge", "", "State of a target's breaker: 0 closed, 1 half-open, 2 open.", (TARGET,),
    merge="max",
)  # fmt: skip

STORE_DURATION = Metric(
    "db.client.operation.duration", "histogram", "s", "Duration of operations of a store outside the process's memory.",
    ("db.system.name", "db.operation.name", "headgate.store", ERROR), STORE_BOUNDS,
)  # fmt: skip

LOOP_LAG = Metric(
    "headgate.event_loop.lag", "histogram", "s", "How late the event loop ran a timer.", (), SHORT_BOUNDS
)  # fmt: skip
CONNECTIONS = Metric(
    "headgate.connections", "gauge", "{connection}", "Connections of clients.", ("headgate.connection.type",)
)  # fmt: skip
BODY_MEMORY = Metric("headgate.body_memory", "gauge", "By", "Memory that bodies of requests and answers take.")
LOST = Metric(
    "headgate.lost", "counter", "{record}", "Lines and spans that could not be written or sent.", ("headgate.signal",)
)  # fmt: skip
EVENTS = Metric(
    "headgate.log.events", "counter", "{event}", "Warnings and errors in the log, by their event.",
    ("headgate.event", "headgate.level"),
)  # fmt: skip
RELOADS = Metric(
    "headgate.config.reloads", "counter", "{reload}", "How often the config was read again.", ("headgate.outcome",)
)  # fmt: skip
ISSUER = "headgate.issuer"
ISSUER_REFRESHES = Metric(
    "headgate.issuer.refreshes", "counter", "{refresh}", "How often the keys of an issuer of tokens were fetched.",
    (ISSUER, "headgate.outcome"),
)  # fmt: skip
ISSUER_KEYS_AGE = Metric(
    "headgate.issuer.keys.age", "gauge", "s", "How old the keys of an issuer are that signatures are checked with.",
    (ISSUER,), merge="max",
)  # fmt: skip
CPU_TIME = Metric("process.cpu.time", "counter", "s", "CPU time of the process.", ("cpu.mode",))
RESIDENT = Metric("process.memory.usage", "gauge", "By", "Physical memory that the process uses.")
START_TIME = Metric(
    "process.start_time", "gauge", "s", "When the process began, in seconds since 1970.", merge="max"
)  # fmt: skip
