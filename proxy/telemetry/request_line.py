"""The log line of a request as JSON, in a third of the time that structlog's steps and one whole encoding take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import orjson

from proxy.telemetry.record import LONGEST_CHARS, RECORDED, SCALARS, RequestRecord, add_known, fit_for_log
from proxy.telemetry.request_metrics import MetricsPlan
from proxy.wire.key_patterns import has_key

COMMON = (
    "method", "caller", "team", "key_id", "issuer", "key_fingerprint", "model", "stream", "status", "code", "policy",
    "outcome", "route", "backend", "provider", "attempts", "hedged", "cache", "cache_detail", "estimated", "unpriced",
)  # fmt: skip
"""The fields whose values many requests have in common. All are hashable, and equal ones are encoded alike."""
OWN = tuple(name for name in RECORDED if name not in COMMON)
"""The fields whose values are a request's own."""
MAX_FORMS = 2000
"""How many forms of lines are remembered; then all are made again as they come."""
_common_of = attrgetter(*COMMON)
_own_of = attrgetter(*OWN)

Values = tuple[Any, ...]


@dataclass(slots=True)
class LineForm:
    """How lines of one kind are put together: with the same common values, and with the same own ones known."""

    end: bytes
    """The common fields, as JSON."""
    read: Callable[[RequestRecord], Values] | None = None
    """Returns the own values that are known, in order. None: each value has to be looked at."""
    metadata_at: int = 0
    """Before which of these the values of metadata are, if there are any."""
    pieces: list[bytes] = field(default_factory=list)
    """A line, in which each second piece is a value."""
    plan: MetricsPlan | None = None
    """To which series of metrics such requests are added, once that is known."""


class RequestLines:
    """Encodes log lines of requests. What one has in common with others is encoded, and found to be short, once."""

    def __init__(self) -> None:
        self._forms: dict[Values, LineForm] = {}
        self._second, self._time = b"", b""

    def encode(self, event: str, request_id: str, record: RequestRecord, ended_at: float, duration_s: float) -> bytes:
        """Return the line of a request that has ended: its record is complete."""
        line, values = self.draft(self.form_of(event, record), event, request_id, record, ended_at, duration_s)
        return line if is_fit(values) else self.encode_whole(event, request_id, record, ended_at, duration_s)

    def form_of(self, event: str, record: RequestRecord, template: str | None = None) -> LineForm:
        """Return the form of a request's line. Requests of one form are added to the same metrics.

        `template` is that of its path.
        """
        kind = event, template, kind_of(record)
        try:
            form = self._forms.get(kind)
        except TypeError:  # a value of the upstream's that is no scalar
            return LineForm(_end_of(event, record)[0])
        return form or self._make_form(kind, event, record)

    def draft(
        self, form: LineForm, event: str, request_id: str, record: RequestRecord, ended_at: float, duration_s: float
    ) -> tuple[bytes, bytes]:
        """Return a line and the values in it that are not common ones: it is the line if `is_fit` says so of these.

        They are encoded together, and put between names: so a text with a comma has to be looked at.
        """
        if form.read is not None:
            own = form.read(record)
            if record.metadata is not None:
                own = (*own[: form.metadata_at], *record.metadata.values(), *own[form.metadata_at :])
            try:
                values = orjson.dumps((ended_at, request_id, round(duration_s * 1e5) / 100, *own))[1:-1]
            except orjson.JSONEncodeError:  # half of a surrogate pair, a number of more than 64 bits
                return self.encode_whole(event, request_id, record, ended_at, duration_s), b""
            found, pieces = values.split(b","), form.pieces.copy()
            others = len(request_id) + len(pieces)  # what a longer text would leave: a byte and a comma for each value
            is_short = len(values) <= LONGEST_CHARS + others or max(map(len, found)) <= LONGEST_CHARS
            if is_short and len(pieces) == 2 * len(found) + 1:
                found[0] = self._time_of(found[0])
                pieces[1::2] = found
                return b"".join(pieces), values
        return self.encode_whole(event, request_id, record, ended_at, duration_s), b""

    def encode_whole(
        self, event: str, request_id: str, record: RequestRecord, ended_at: float, duration_s: float
    ) -> bytes:
        """Return a line, each value of which is looked at."""
        own: dict[str, Any] = {}
        if not add_known(own, OWN, _own_of(record)):
            own = fit_for_log(own)
        duration_ms = round(duration_s * 1e5) / 100
        own = {
            "timestamp": f"{self._time_of(str(ended_at).encode()).decode()}+00:00",
            "request_id": request_id,
            "duration_ms": duration_ms,
            **own,
        }
        return b"%b,%b" % (orjson.dumps(own)[:-1], _end_of(event, record)[0])

    def _make_form(self, kind: Values, event: str, record: RequestRecord) -> LineForm:
        """Return the form of lines of this kind. It is remembered if its values are as short as they should be."""
        end, is_short = _end_of(event, record)
        form, reason = _form(end, record), record.finish_reason
        if is_short and (type(reason) is not str or len(reason) <= LONGEST_CHARS):
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            self._forms[kind] = form
        return form

    def _time_of(self, seconds: bytes) -> bytes:
        """Return a time in UTC; `seconds` are those since 1970. Most are of the second of the one before."""
        second, _, fraction = seconds.partition(b".")
        if second != self._second:
            self._second = second
            self._time = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(second))).encode()
        return self._time + fraction[:6].ljust(6, b"0")


def is_fit(values: bytes) -> bool:
    """Whether values that are JSON can be logged as they are: printable, without keys, nothing that is escaped."""
    text = values.decode()
    is_plain = "\x7f" not in text if text.isascii() else text.isprintable()
    return is_plain and "\\" not in text and not has_key(text)


def kind_of(record: RequestRecord) -> Values:
    """Return what the form of a record's line and its metrics depend on: common values, and what own ones are known.

    Of those that callers and upstreams have sent, the types too.

    To read the fields by name takes a third of what `attrgetter` does.
    """
    kind = type
    common = (
        record.method, record.caller, record.team, record.key_id, record.issuer, record.key_fingerprint, record.model,
        record.stream, record.status, record.code, record.policy, record.outcome, record.route, record.backend,
        record.provider, record.attempts, record.hedged, record.cache, record.cache_detail, record.estimated,
        record.unpriced, record.metadata is None or tuple(record.metadata), record.finish_reason,
    )  # fmt: skip
    own = (
        record.path is None, record.trace_id is None, record.client_address is None, record.tags is None,
        kind(record.safety_identifier), kind(record.upstream_code), record.repairs is None,
        record.cache_lookup_s is None, record.cache_bytes is None, record.queue_s is None, record.inference_s is None,
        kind(record.max_output_tokens), record.first_event_s is None, kind(record.response_id),
        kind(record.response_model), kind(record.finish_reason), kind(record.incomplete_reason),
        kind(record.input_tokens), kind(record.output_tokens), kind(record.cached_tokens),
        kind(record.cache_write_tokens), kind(record.reasoning_tokens), kind(record.saved_input_tokens),
        kind(record.saved_output_tokens), record.cost_usd is None, record.saved_usd is None,
    )  # fmt: skip
    return common, own  # of more than 30 values a tuple would be made by way of a list


def _end_of(event: str, record: RequestRecord) -> tuple[bytes, bool]:
    """Return the end of a record's line, and whether its values are as short as they should be."""
    fields: dict[str, Any] = {}
    is_short = add_known(fields, COMMON, _common_of(record))
    end = {"level": "info", **(fields if is_short else fit_for_log(fields)), "event": event}
    return orjson.dumps(end)[1:], is_short


def _form(end: bytes, record: RequestRecord) -> LineForm:
    """Return the form of lines like that of a record."""
    known = [(name, value) for name, value in zip(OWN, _own_of(record), strict=True) if value is not None]
    if not all(type(value) in SCALARS or name == "metadata" for name, value in known):
        return LineForm(end)
    names = [name for name, _ in known if name != "metadata"]
    metadata_at = sum(OWN.index(name) < OWN.index("metadata") for name in names)
    metadata = [f"metadata.{name}" for name in record.metadata or ()]
    shown = ["request_id", "duration_ms", *names[:metadata_at], *metadata, *names[metadata_at:]]
    pieces = [b'{"timestamp":"', b"", b'+00:00",']
    for name in shown:
        pieces[-1] += b"%b:" % orjson.dumps(name)
        pieces += [b"", b","]
    pieces[-1] += end
    return LineForm(end, _reader(names), metadata_at, pieces)


def _reader(names: Sequence[str]) -> Callable[[RequestRecord], Values]:
    """Return what reads fields as a tuple, however many they are."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    only = attrgetter(names[0])
    return lambda record: (only(record),)
