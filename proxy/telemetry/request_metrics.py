"""Adds finished requests to the metrics, many at a time, from their records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from proxy.telemetry import metrics
from proxy.telemetry.http_methods import SOCKET, known_method
from proxy.telemetry.instruments import Buckets, Cell, Instruments, Names
from proxy.telemetry.recent import RecentRequests
from proxy.telemetry.record import FROM_CACHE, RequestRecord

OPERATIONS = {
    "/v1/responses": "chat", "/v1/responses/compact": "compact", "/v1/responses/input_tokens": "count_tokens",
}  # fmt: skip
"""The names of operations by the templates of paths that call a model; the conventions allow names of one's own."""
RELAY = "relay"
LOOKED_UP = FROM_CACHE | {"miss", "refresh"}
LARGEST_COUNT = 2**53

Steps = Sequence[tuple[str, float]]
_inference_of: Callable[[RequestRecord], float] = attrgetter("inference_s")
_lookup_of: Callable[[RequestRecord], float] = attrgetter("cache_lookup_s")


@dataclass(slots=True)
class MetricsPlan:
    """The series to which requests with equal labels are added: to look up ten for each would cost more than adding.

    Requests with the same plan have the same fields, of the same types.
    """

    http: Buckets | None = None
    counted: list[Cell] = field(default_factory=list)
    summed: list[tuple[str, Cell]] = field(default_factory=list)
    """Fields of the record that are added to a counter ..."""
    inference: Buckets | None = None
    first_chunk: Buckets | None = None
    per_token: Buckets | None = None
    lookup: Buckets | None = None
    """... and durations that are added to histograms."""
    has_more: bool = False
    """Whether there is something to be added that most requests have not: retries, a wait for a place, repairs."""


class RequestMetrics:
    """What is measured of requests. Looking up ten series for each would cost more than adding to them."""

    def __init__(self, instruments: Instruments) -> None:
        counter, histogram = instruments.counter, instruments.histogram
        self.scheme = "http"
        """What the addresses of the gateway begin with."""
        self.recent: RecentRequests = RecentRequests(maxlen=0)
        """The requests that ended last; none is kept without `[admin]`."""
        self._http, self._calls = histogram(metrics.HTTP_DURATION), counter(metrics.CALLS)
        self._inference = histogram(metrics.INFERENCE_DURATION)
        self._first_chunk, self._per_token = histogram(metrics.FIRST_CHUNK), histogram(metrics.PER_TOKEN)
        self._tokens = {name: counter(metric) for name, metric in metrics.USED_TOKENS.items()}
        self._lookups, self._lookup_duration = counter(metrics.CACHE_LOOKUPS), histogram(metrics.CACHE_DURATION)
        self._cache_bytes, self._cache_tokens = counter(metrics.CACHE_BYTES), counter(metrics.CACHE_TOKENS)
        self._cost, self._saved_cost = counter(metrics.COST), counter(metrics.SAVED_COST)
        self._unpriced = counter(metrics.UNPRICED)
        self._retries, self._queue = counter(metrics.RETRIES), histogram(metrics.QUEUE_DURATION)
        self._repairs = counter(metrics.REPAIRS)
        self._models, self._codes = Names(), Names()

    def record(self, record: RequestRecord, seconds: float, steps: Steps, template: str | None = None) -> None:
        """Add a finished request. `template` is that of its path, `steps` are the durations of its steps."""
        self.add(self.plan(record, template), [record], [seconds], [steps])

    def add(
        self, plan: MetricsPlan, records: Sequence[RequestRecord], durations_s: Sequence[float], steps: Sequence[Steps]
    ) -> None:  # fmt: skip
        """Add finished requests, for which this is the plan."""
        if plan.http is not None:
            plan.http.add_all(durations_s)
        if plan.inference is not None:
            plan.inference.add_all(map(_inference_of, records))
        if plan.lookup is not None:
            plan.lookup.add_all(map(_lookup_of, records))
        for cell in plan.counted:
            cell.value += len(records)
        for name, cell in plan.summed:
            cell.value += _sum([*map(attrgetter(name), records)])
        if plan.has_more:
            for record in records:
                self._add_rare(record, record.backend or "")
        if plan.first_chunk is not None:
            for record, of_record in zip(records, steps, strict=True):
                self._add_durations(plan, record, of_record)

    def _add_rare(self, record: RequestRecord, target: str) -> None:
        """Add what most requests have not."""
        if record.attempts is not None:
            self._retries.of(record.route or "", target).value += record.attempts - 1
        if record.queue_s is not None:
            self._queue.of(target).add(record.queue_s)
        for repair, _, count in (each.partition("=") for each in (record.repairs or "").split()):
            self._repairs.of(target, repair).value += int(count)

    @staticmethod
    def _add_durations(plan: MetricsPlan, record: RequestRecord, steps: Steps) -> None:
        """Add how fast a stream was after its first event.

        An attempt that failed before another one, or without an event, had no first one.
        """
        first_s = 0.0
        for step, lasted_s in steps:
            if step == "backend":
                first_s = lasted_s
        inference_s, tokens = record.inference_s, record.output_tokens
        if plan.first_chunk is not None and record.first_event_s is not None:
            plan.first_chunk.add(first_s)
        if (
            plan.per_token is not None
            and inference_s is not None
            and type(tokens) is int
            and 1 < tokens < LARGEST_COUNT
        ):
            plan.per_token.add(max(0.0, inference_s - first_s) / (tokens - 1))

    def plan(self, record: RequestRecord, template: str | None) -> MetricsPlan:
        """Return where requests like this one are added."""
        plan = self._series(record, template)
        plan.summed = [each for each in plan.summed if type(getattr(record, each[0])) in (int, float)]
        plan.has_more = any(value is not None for value in (record.attempts, record.repairs, record.queue_s))
        return plan

    def _series(self, record: RequestRecord, template: str | None) -> MetricsPlan:
        plan = MetricsPlan()
        outcome, error = outcome_of(record)
        error = error and self._codes.label(error, is_proven=True)
        if record.method not in (None, SOCKET) and record.status != 101:  # an upgrade lasts as long as its connection
            method = known_method(record.method or "")
            plan.http = self._http.of(method, self.scheme, template or "", str(record.status or ""), error)
        if not is_model_call(record, template):
            return plan
        team, route, target = record.team or "", record.route or "", record.backend or ""
        is_answered = record.status == 200 and route != "" and outcome in ("success", "stopped")
        model = self._models.label(record.model, is_proven=is_answered) if record.model else ""
        plan.counted.append(self._calls.of(team, model, route, target, transport_of(record), outcome, error))
        if record.cache is not None:
            self._plan_cache(plan, record, record.cache, (team, route, model))
        operation = RELAY if route == RELAY else OPERATIONS.get(template or "", "chat")
        inference = (operation, record.provider or "", model, team, route, target)
        if record.inference_s is not None:
            plan.inference = self._inference.of(*inference, error)
            if record.stream:
                plan.first_chunk = self._first_chunk.of(*inference)
                plan.per_token = self._per_token.of(*inference) if outcome == "success" else None
        if record.cache not in FROM_CACHE or record.inference_s is not None or record.input_tokens is not None:
            plan.summed += [(name, counter.of(*inference, "unknown")) for name, counter in self._tokens.items()]
            self._plan_cost(plan, record, inference)
        return plan

    def _plan_cost(self, plan: MetricsPlan, record: RequestRecord, labels: tuple[str, ...]) -> None:
        """Add up what calls cost; count those without a price, which would look as if they cost nothing."""
        if record.cost_usd is not None:
            plan.summed.append(("cost_usd", self._cost.of(*labels)))
        if record.unpriced:
            plan.counted.append(self._unpriced.of(*labels))

    def _plan_cache(self, plan: MetricsPlan, record: RequestRecord, outcome: str, labels: tuple[str, str, str]) -> None:
        team, route, model = labels
        plan.counted.append(self._lookups.of(team, route, outcome, record.cache_detail or ""))
        if outcome in LOOKED_UP and record.cache_lookup_s is not None:
            plan.lookup = self._lookup_duration.of(outcome)
        if outcome in FROM_CACHE:
            if record.saved_usd is not None:
                plan.summed.append(("saved_usd", self._saved_cost.of(team, model, route)))
            plan.summed.append(("cache_bytes", self._cache_bytes.of(team, route)))
            for kind in ("input", "output"):
                plan.summed.append((f"saved_{kind}_tokens", self._cache_tokens.of(team, model, route, kind)))


def _sum(column: Sequence[float]) -> float:
    """Return the sum of the numbers that can be counts: an upstream may have sent any."""
    if min(column) >= 0 and max(column) < LARGEST_COUNT:
        return sum(column)
    return sum(count for count in column if 0 < count < LARGEST_COUNT)


def outcome_of(record: RequestRecord) -> tuple[str, str]:
    """Return how a request ended, in one word, and the code of the error with which it did, "" for none."""
    status = record.status or 0
    code = record.code or (str(status) if status >= 400 else "")
    ends = (
        (status == 499, "client_closed"),
        (record.outcome == "stopped", "stopped"),
        (record.outcome == "refused" and status >= 400, "refused"),
        (record.finish_reason == "cancelled", "cancelled"),
        (400 <= status < 500, "rejected"),
        (status >= 500 or record.code is not None, "failed"),
    )
    if record.finish_reason == "failed":
        code = code or "response_failed"
    return next((outcome for is_so, outcome in ends if is_so), "failed" if code else "success"), code


def is_model_call(record: RequestRecord, template: str | None) -> bool:
    """Whether a request calls a model: by POST, by a message of WebSocket mode, in the background, or relayed.

    One that queues a background response does not: that is a call of its own when it ends.
    """
    if record.finish_reason == "queued":
        return False
    if record.method in (None, SOCKET) or record.route == RELAY:
        return True
    return record.method == "POST" and template in OPERATIONS


def transport_of(record: RequestRecord) -> str:
    """Return the way on which a call came."""
    if record.method is None:
        return "background"
    if record.method == SOCKET:
        return "websocket"
    return RELAY if record.route == RELAY else "stream" if record.stream else "json"
