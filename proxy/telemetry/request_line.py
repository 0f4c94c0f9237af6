"""The log lines of requests as JSON, in a fifth of the time that structlog's steps and whole encodings take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import orjson

from proxy.telemetry.recent import ListedRequest
from proxy.telemetry.record import LONGEST_CHARS, NUMBERS, RECORDED, SCALARS, RequestRecord, add_known, fit_for_log
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
FinishedRequest = tuple[
    str, str, RequestRecord, str | None, float, float, Sequence[tuple[str, float]], ListedRequest | None
]  # fmt: skip
"""What is known of a request when it has ended: event, id, record, template, when that was in seconds since 1970, how
long it took, steps, what is listed of it. A tuple without a class of its own is made in a tenth of the time.
"""


@dataclass(slots=True, eq=False)
class LineForm:
    """How lines of one kind are put together: with the same common values, and with the same own ones known."""

    end: str
    """The common fields, as JSON."""
    read: Callable[[RequestRecord], Values] | None = None
    """Returns the own values that are known, texts first. None: each value has to be looked at."""
    texts: int = 0
    """How many of them are texts."""
    names: Sequence[str] = ()
    """The text before each value of a line, and after the last one: names, quotes and commas."""
    plan: MetricsPlan | None = None
    """To which series of metrics such requests are added, once that is known."""


class RequestLines:
    """Encodes log lines of requests. What one has in common with others is encoded, and found to be short, once."""

    def __init__(self) -> None:
        self._forms: dict[Values, LineForm] = {}
        self._last_kind: Values = ()
        self._last_form = LineForm("")
        self._second, self._time = "", ""

    def form_of(self, request: FinishedRequest) -> LineForm:
        """Return the form of a request's line. Requests of one form are added to the same metrics."""
        event, _, record, template, _, _, _, _ = request
        kind = event, template, kind_of(record)
        if kind == self._last_kind:  # most are like the one before
            return self._last_form
        try:
            form = self._forms.get(kind)
        except TypeError:  # a value of the upstream's that is no scalar
            return LineForm(_end_of(event, record)[0])
        self._last_form = form or self._make_form(kind, event, record)
        self._last_kind = kind
        return self._last_form

    def encode(self, requests: Sequence[FinishedRequest], forms: Sequence[LineForm]) -> bytes:
        """Return the lines of requests, each of which has one of the forms, with line ends between them."""
        alike: dict[LineForm, list[FinishedRequest]] = {}
        for form, request in zip(forms, requests, strict=True):
            alike.setdefault(form, []).append(request)
        lines = {form: iter(self._lines_of(form, those)) for form, those in alike.items()}
        return "\n".join([next(lines[form]) for form in forms]).encode()

    def _lines_of(self, form: LineForm, requests: Sequence[FinishedRequest]) -> list[str]:
        """Return the lines of requests of one form.

        They are encoded together. If a value of one has to be looked at, each half is encoded alone, down to that one.
        """
        lines = None if form.read is None else self._encode_alike(form, form.read, requests)
        if lines is not None:
            return lines
        if len(requests) == 1:
            return [self._encode_whole(requests[0])]
        half = len(requests) // 2
        return [*self._lines_of(form, requests[:half]), *self._lines_of(form, requests[half:])]

    def _encode_alike(
        self, form: LineForm, read: Callable[[RequestRecord], Values], requests: Sequence[FinishedRequest]
    ) -> list[str] | None:
        """Return the lines, made field by field; None if one has a value that has to be looked at."""
        _, ids, records, _, ended_at, durations_s, _, _ = zip(*requests, strict=True)
        columns = [*zip(*map(read, records), strict=True)]
        texts = columns[: form.texts]
        if not _are_fit([*chain.from_iterable(texts)]):
            return None
        try:
            numbers = [*map(_encode_numbers, columns[form.texts :])]
        except orjson.JSONEncodeError:  # a number of more than 64 bits
            return None
        times = map(self._time_of, _encode_numbers(ended_at))
        values = times, ids, _encode_numbers([*map(_in_ms, durations_s)]), *texts, *numbers
        parts = chain.from_iterable(zip(map(repeat, form.names), values, strict=False))
        return [*map("".join, zip(*parts, repeat(form.names[-1]), strict=False))]

    def _encode_whole(self, request: FinishedRequest) -> str:
        """Return a line, each value of which is looked at."""
        event, request_id, record, _, ended_at, duration_s, _, _ = request
        own: dict[str, Any] = {}
        if not add_known(own, OWN, _own_of(record)):
            own = fit_for_log(own)
        own = {
            "timestamp": f"{self._time_of(str(ended_at))}+00:00",
            "request_id": request_id,
            "duration_ms": _in_ms(duration_s),
            **own,
        }
        return f"{orjson.dumps(own)[:-1].decode()},{_end_of(event, record)[0]}"

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
        """Return a time in UTC; `seconds` are those since 1970. Most are of the second of the one before."""
        second, _, fraction = seconds.partition(".")
        if second != self._second:
            self._second = second
            self._time = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(second)))
        return self._time + fraction[:6].ljust(6, "0")


def _are_fit(texts: Sequence[str]) -> bool:
    """Whether texts can be logged as they are: short, printable, without keys, and in JSON without escapes."""
    if max(map(len, texts), default=0) > LONGEST_CHARS:
        return False
    text = " ".join({*texts})
    try:
        if b"\\" in orjson.dumps(text):  # to search for an escape costs much less than for a key
            return False
    except orjson.JSONEncodeError:  # half of a surrogate pair
        return False
    return ("\x7f" not in text if text.isascii() else text.isprintable()) and not has_key(text)


def _encode_numbers(column: Sequence[float]) -> list[str]:
    """Return numbers as JSON has them. Raises JSONEncodeError for one of more than 64 bits."""
    return orjson.dumps(column)[1:-1].decode().split(",")


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


def _end_of(event: str, record: RequestRecord) -> tuple[str, bool]:
    """Return the end of a record's line, and whether its values are as short as they should be."""
    fields: dict[str, Any] = {}
    is_short = add_known(fields, COMMON, _common_of(record))
    end = {"level": "info", **(fields if is_short else fit_for_log(fields)), "event": event}
    return orjson.dumps(end)[1:].decode(), is_short


def _form(end: str, record: RequestRecord) -> LineForm:
    """Return the form of lines like that of a record."""
    known = [(name, value) for name, value in zip(OWN, _own_of(record), strict=True) if value is not None]
    if not all(type(value) in SCALARS or name == "metadata" for name, value in known):
        return LineForm(end)
    texts = [name for name, value in known if type(value) is str]
    numbers = [name for name, value in known if type(value) in NUMBERS]
    metadata = [f"metadata.{name}" for name in record.metadata or ()]
    names, quote = ['{"timestamp":"', '+00:00","request_id":"', '","duration_ms":'], ""
    for name in (*metadata, *texts):
        names.append(f'{quote},{orjson.dumps(name).decode()}:"')
        quote = '"'
    for name in numbers:
        names.append(f'{quote},"{name}":')
        quote = ""
    names.append(f"{quote},{end}")
    read = _reader([*texts, *numbers])
    if not metadata:
        return LineForm(end, read, len(texts), names)
    return LineForm(
        end, lambda found: (*(found.metadata or {}).values(), *read(found)), len(metadata) + len(texts), names
    )


def _reader(names: Sequence[str]) -> Callable[[RequestRecord], Values]:
    """Return what reads fields as a tuple, however many they are."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    only = attrgetter(names[0])
    return lambda record: (only(record),)


def _in_ms(seconds: float) -> float:
    """Return a duration in steps of 0.01 ms."""
    return round(seconds * 1e5) / 100
