"""The log lines of requests as JSON, in a sixth of the time that structlog's steps and whole encodings take."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import msgspec
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
FIRST = ("timestamp", "request_id", "duration_ms", "trace_id")
"""The fields with which each line begins; the last one is left out where it is not known."""
TRACE_ID = FIRST[-1]
LEVEL = '"level":'
"""What the common fields begin with."""
COUNTED_REASONS = ("cancelled", "failed", "queued")
"""The finish reasons that metrics depend on. A tuple, as a set would hash a reason of any length."""
MAX_FORMS = 2000
"""How many forms of lines are remembered; then all are made again as they come."""
MAX_TYPES = 256
"""How many combinations of fields have a type of line of their own; in lines with others each value is looked at.

A type takes 40 KB and 30 us, and callers choose which keys of metadata they send.
"""
_common_of = attrgetter(*COMMON)
_own_of = attrgetter(*OWN)
_LINES = msgspec.json.Encoder()

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
    """Returns the trace's id, None without one, and the own values that are known, texts first.

    None: each value has to be looked at.
    """
    texts: int = 0
    """How many of them are texts, the id of the trace included."""
    line: Callable[..., msgspec.Struct] = msgspec.Struct
    """Makes a line of its time, id, duration, these values, and the common ones."""
    common: msgspec.Raw | None = None
    """The common fields, as the value of the first of them."""
    plan: MetricsPlan | None = None
    """To which series of metrics such requests are added, once that is known."""


Groups = Mapping[LineForm, Sequence[FinishedRequest]]
"""Requests by the forms of their lines."""


def group_by_form(requests: Sequence[FinishedRequest], forms: Sequence[LineForm]) -> Groups:
    """Return requests, each of which has one of the forms, by these."""
    groups: dict[LineForm, list[FinishedRequest]] = {}
    for form, request in zip(forms, requests, strict=True):
        groups.setdefault(form, []).append(request)
    return groups


class RequestLines:
    """Encodes log lines of requests. What one has in common with others is encoded, and found to be short, once."""

    def __init__(self) -> None:
        self._forms: dict[Values, LineForm] = {}
        self._types: dict[Sequence[str], type[msgspec.Struct]] = {}  # by the names of their fields
        self._last_kind: Values = ()
        self._last_form = LineForm("")
        self._second, self._time = "", ""

    def form_of(self, request: FinishedRequest) -> LineForm:
        """Return the form of a request's line. Requests of one form are added to the same metrics."""
        event, _, record, template, _, _, _, _ = request
        kind = event, template, kind_of(record)
        if kind == self._last_kind:  # most are like the one before
            return self._last_form
        self._last_form = self._forms.get(kind) or self._make_form(kind, event, record)
        self._last_kind = kind
        return self._last_form

    def encode(self, forms: Sequence[LineForm], groups: Groups) -> bytes:
        """Return the lines of requests, in the order of their forms, with line ends between them."""
        if len(groups) == 1:
            return b"".join([self._lines_of(form, requests) for form, requests in groups.items()])
        lines = {form: iter(self._lines_of(form, requests).split(b"\n")) for form, requests in groups.items()}
        return b"\n".join([next(lines[form]) for form in forms])

    def _lines_of(self, form: LineForm, requests: Sequence[FinishedRequest]) -> bytes:
        """Return the lines of requests of one form.

        They are encoded together. If a value of one has to be looked at, each half is encoded alone, down to that one.
        """
        lines = None if form.read is None else self._encode_alike(form, form.read, requests)
        if lines is not None:
            return lines
        if len(requests) == 1:
            return self._encode_whole(requests[0])
        half = len(requests) // 2
        return b"%b\n%b" % (self._lines_of(form, requests[:half]), self._lines_of(form, requests[half:]))

    def _encode_alike(
        self, form: LineForm, read: Callable[[RequestRecord], Values], requests: Sequence[FinishedRequest]
    ) -> bytes | None:
        """Return the lines; None if one has a value that has to be looked at."""
        _, ids, records, _, ended_at, durations_s, _, _ = zip(*requests, strict=True)
        values = [*zip(*map(read, records), strict=True)]
        texts, numbers = chain.from_iterable(values[: form.texts]), values[form.texts :]
        if not _are_fit([*filter(None, texts)]) or not _are_short(numbers):
            return None
        seconds = orjson.dumps(ended_at)[1:-1].decode().split(",")
        own = map(self._time_of, seconds), ids, map(_in_ms, durations_s), *values
        return _LINES.encode_lines(map(form.line, *own, repeat(form.common)))[:-1]

    def _encode_whole(self, request: FinishedRequest) -> bytes:
        """Return a line, each value of which is looked at."""
        event, request_id, record, _, ended_at, duration_s, _, _ = request
        own: dict[str, Any] = {}
        if not add_known(own, OWN, _own_of(record)):
            own = fit_for_log(own)
        own = {
            "timestamp": self._time_of(str(ended_at)),
            "request_id": request_id,
            "duration_ms": _in_ms(duration_s),
            **own,
        }
        return b"%b,%b" % (orjson.dumps(own)[:-1], _end_of(event, record)[0].encode())

    def _make_form(self, kind: Values, event: str, record: RequestRecord) -> LineForm:
        """Return the form of lines of this kind. It is remembered if its values are as short as they should be."""
        end, is_short = _end_of(event, record)
        form = self._form(end, record)
        if is_short:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
                self._types.clear()
            self._forms[kind] = form
        return form

    def _form(self, end: str, record: RequestRecord) -> LineForm:
        """Return the form of lines like that of a record."""
        known = [(name, value) for name, value in zip(OWN, _own_of(record), strict=True) if value is not None]
        if not all(type(value) in SCALARS or name == "metadata" for name, value in known):
            return LineForm(end)
        texts = [name for name, value in known if type(value) is str and name != TRACE_ID]
        numbers = [name for name, value in known if type(value) in NUMBERS]
        metadata = [f"metadata.{name}" for name in record.metadata or ()]
        line = self._type_of((*FIRST, *metadata, *texts, *numbers))
        if line is None:
            return LineForm(end)
        common = msgspec.Raw(end.removeprefix(LEVEL).removesuffix("}").encode())
        read = _reader(TRACE_ID, *texts, *numbers)
        if not metadata:
            return LineForm(end, read, 1 + len(texts), line, common)
        return LineForm(
            end, lambda found: (found.trace_id, *(found.metadata or {}).values(), *read(found)[1:]),
            1 + len(metadata) + len(texts), line, common,
        )  # fmt: skip

    def _type_of(self, names: Sequence[str]) -> type[msgspec.Struct] | None:
        """Return the type of lines with these fields; None if there are too many types, or a name needs escapes."""
        line = self._types.get(names)
        if line is None and len(self._types) < MAX_TYPES:
            with suppress(ValueError):
                line = self._types[names] = _line_type(names)
        return line

    def _time_of(self, seconds: str) -> str:
        """Return a time in UTC; `seconds` are those since 1970. Most are of the second of the one before."""
        second, _, fraction = seconds.partition(".")
        if second != self._second:
            self._second = second
            self._time = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(second)))
        return f"{self._time}{fraction[:6].ljust(6, '0')}+00:00"


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


def _are_short(numbers: Sequence[Values]) -> bool:
    """Whether numbers can be logged as they are: none has more than 64 bits."""
    try:
        return bool(orjson.dumps(numbers))
    except orjson.JSONEncodeError:
        return False


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
        record.unpriced, record.metadata is None or tuple(record.metadata),
        record.finish_reason in COUNTED_REASONS and record.finish_reason,
    )  # fmt: skip
    own = (
        record.path is None, record.client_address is None, record.tags is None,
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


def _line_type(names: Sequence[str]) -> type[msgspec.Struct]:
    """Return the type of lines with these fields, and the common ones after them. A value that is None is left out.

    Raises ValueError for a name that JSON has to escape.
    """
    fields = [(f"field_{number}", Any, None) for number in range(len(names) + 1)]
    written = dict(zip([field for field, _, _ in fields], (*names, "level"), strict=True))
    return msgspec.defstruct("Line", fields, rename=written, omit_defaults=True, gc=False)


def _reader(*names: str) -> Callable[[RequestRecord], Values]:
    """Return what reads fields as a tuple, however few they are."""
    if len(names) > 1:
        return attrgetter(*names)
    only = attrgetter(*names)
    return lambda record: (only(record),)


def _in_ms(seconds: float) -> float:
    """Return a duration in steps of 0.01 ms."""
    return round(seconds * 1e5) / 100
