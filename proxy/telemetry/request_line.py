"""The log line of a request as JSON, in a third of the time that structlog's steps and one whole encoding take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any

import orjson

from proxy.telemetry.record import LONGEST_CHARS, NUMBERS, RECORDED, RequestRecord, add_known, fit_for_log
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
PLAIN = bytes(each for each in range(0x20, 0x7F) if each not in b'"\\')
_common_of = attrgetter(*COMMON)
_own_of = attrgetter(*OWN)

Values = tuple[Any, ...]


@dataclass(slots=True)
class LineForm:
    """How lines of one kind are put together: with the same common values, and with own ones of the same types.

    `pieces` is a line in which each second piece is a value. Values are collected as the time, the duration and
    numbers, texts, and the request's id; `order` puts them into the order of the line.
    """

    end: bytes
    """The common fields, as JSON."""
    read: Callable[[RequestRecord], Values] | None = None
    """Returns first the numbers and then the texts, but for those of the metadata, which follow. None: each value has
    to be looked at.
    """
    numbers: int = 0
    order: Callable[[Sequence[str]], Sequence[str]] = tuple
    pieces: list[str] = field(default_factory=list)
    plan: MetricsPlan | None = None
    """To which series of metrics such requests are added, once that is known."""


class RequestLines:
    """Encodes log lines of requests. What one has in common with others is encoded, and found to be short, once."""

    def __init__(self) -> None:
        self._forms: dict[Values, LineForm] = {}
        self._second, self._time = "", ""

    def encode(self, event: str, request_id: str, record: RequestRecord, ended_at: float, duration_s: float) -> bytes:
        """Return the line of a request that has ended: its record is complete."""
        line, texts = self.draft(self.form_of(event, record), event, request_id, record, ended_at, duration_s)
        return line if is_fit(texts) else self.encode_whole(event, request_id, record, ended_at, duration_s)

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
    ) -> tuple[bytes, str]:
        """Return a line and the texts in it that may be from outside: it is the line if `is_fit` says so of these."""
        if form.read is None:
            return self.encode_whole(event, request_id, record, ended_at, duration_s), ""
        own = form.read(record)
        count = form.numbers
        texts = own[count:] if record.metadata is None else (*own[count:], *record.metadata.values())
        joined = " ".join(texts)
        try:
            if len(joined) > LONGEST_CHARS and max(map(len, texts)) > LONGEST_CHARS:
                return self.encode_whole(event, request_id, record, ended_at, duration_s), ""
            numbers = orjson.dumps((ended_at, round(duration_s * 1e5) / 100, *own[:count])).decode()[1:-1].split(",")
            numbers[0] = self._time_of(numbers[0])
            pieces = form.pieces.copy()
            pieces[1::2] = form.order([*numbers, *texts, request_id])
            return "".join(pieces).encode(), joined
        except (orjson.JSONEncodeError, UnicodeEncodeError):  # a number of more than 64 bits, half of a surrogate pair
            return self.encode_whole(event, request_id, record, ended_at, duration_s), ""

    def encode_whole(
        self, event: str, request_id: str, record: RequestRecord, ended_at: float, duration_s: float
    ) -> bytes:
        """Return a line, each value of which is looked at."""
        own: dict[str, Any] = {}
        if not add_known(own, OWN, _own_of(record)):
            own = fit_for_log(own)
        duration_ms = round(duration_s * 1e5) / 100
        own = {"timestamp": self._time_of(str(ended_at)), "request_id": request_id, "duration_ms": duration_ms, **own}
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

    def _time_of(self, seconds: str) -> str:
        """Return a time as JSON has it; `seconds` are those since 1970. Most are of the second of the one before."""
        second, _, fraction = seconds.partition(".")
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(second)))
        return f"{self._time}.{(fraction + '00000')[:6]}+00:00"


def is_fit(texts: str) -> bool:
    """Whether texts, which are short, can be logged as they are: printable, without keys, nothing to escape."""
    if texts.isascii():
        is_plain = not texts.encode().translate(None, PLAIN)
    else:
        is_plain = texts.isprintable() and '"' not in texts and "\\" not in texts
    return is_plain and not has_key(texts)


def kind_of(record: RequestRecord) -> Values:
    """Return what the form of a record's line and its metrics depend on: common values, and the types of its own ones.

    To read the fields by name takes a third of what `attrgetter` does.
    """
    kind = type
    return (
        record.method, record.caller, record.team, record.key_id, record.issuer, record.key_fingerprint, record.model,
        record.stream, record.status, record.code, record.policy, record.outcome, record.route, record.backend,
        record.provider, record.attempts, record.hedged, record.cache, record.cache_detail, record.estimated,
        record.unpriced, record.metadata is None or tuple(record.metadata), record.finish_reason,
        kind(record.path), kind(record.trace_id), kind(record.client_address), kind(record.tags),
        kind(record.safety_identifier), kind(record.upstream_code), kind(record.repairs),
        kind(record.cache_lookup_s), kind(record.cache_bytes), kind(record.queue_s), kind(record.inference_s),
        kind(record.max_output_tokens), kind(record.first_event_s), kind(record.response_id),
        kind(record.response_model), kind(record.finish_reason), kind(record.incomplete_reason),
        kind(record.input_tokens), kind(record.output_tokens), kind(record.cached_tokens),
        kind(record.cache_write_tokens), kind(record.reasoning_tokens), kind(record.saved_input_tokens),
        kind(record.saved_output_tokens), kind(record.cost_usd), kind(record.saved_usd),
    )  # fmt: skip


def _end_of(event: str, record: RequestRecord) -> tuple[bytes, bool]:
    """Return the end of a record's line, and whether its values are as short as they should be."""
    fields: dict[str, Any] = {}
    is_short = add_known(fields, COMMON, _common_of(record))
    end = {"level": "info", **(fields if is_short else fit_for_log(fields)), "event": event}
    return orjson.dumps(end)[1:], is_short


def _form(end: bytes, record: RequestRecord) -> LineForm:
    """Return the form of lines like that of a record."""
    known = [(name, value) for name, value in zip(OWN, _own_of(record), strict=True) if value is not None]
    numbers = [name for name, value in known if type(value) in NUMBERS]
    texts = [name for name, value in known if type(value) is str]
    metadata = [f"metadata.{name}" for name in record.metadata or ()]
    if len(known) != len(numbers) + len(texts) + (record.metadata is not None):
        return LineForm(end)
    names = ["timestamp", "request_id", "duration_ms"]
    for name, _ in known:
        names += metadata if name == "metadata" else [name]
    pieces, before = list[str](), "{"
    for name in names:
        quote = "" if name in ("duration_ms", *numbers) else '"'
        pieces += [f"{before}{orjson.dumps(name).decode()}:{quote}", ""]
        before = f"{quote},"
    pieces.append(f"{before}{end.decode()}")
    collected = ["timestamp", "duration_ms", *numbers, *texts, *metadata, "request_id"]
    order = itemgetter(*map(collected.index, names))
    return LineForm(end, _reader([*numbers, *texts]), len(numbers), order, pieces)


def _reader(names: Sequence[str]) -> Callable[[RequestRecord], Values]:
    """Return what reads fields as a tuple, however many they are."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    only = attrgetter(names[0])
    return lambda record: (only(record),)
