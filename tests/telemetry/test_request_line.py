"""The JSON line of a request says what its record does, in as little room."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, get_type_hints

import orjson
import pytest

from proxy.telemetry import request_line
from proxy.telemetry.record import LONGEST_CHARS, RECORDED, RequestRecord
from proxy.telemetry.request_line import (
    COMMON,
    COUNTED_REASONS,
    OWN,
    FinishedRequest,
    RequestLines,
    group_by_form,
    kind_of,
)

ENDED_AT = 1_796_000_000.5


def request_of(record: RequestRecord, event: str = "request.finished", number: int = 1) -> FinishedRequest:
    return event, f"req_{number}", record, None, ENDED_AT, 0.123456, (), None


def encode(lines: RequestLines, *requests: FinishedRequest) -> bytes:
    forms = [*map(lines.form_of, requests)]
    return lines.encode(forms, group_by_form(requests, forms))


def line_of(lines: RequestLines, record: RequestRecord, event: str = "request.finished") -> dict[str, Any]:
    """Return the fields of a line, in which each has one value."""
    line = encode(lines, request_of(record, event))
    pairs: list[tuple[str, Any]] = [*orjson.loads(line).items()]

    assert all(line.count(b'"%b":' % name.encode()) == 1 for name, _ in pairs)
    return dict(pairs)


def expected(record: RequestRecord, event: str = "request.finished") -> dict[str, Any]:
    time = datetime.fromtimestamp(ENDED_AT, UTC).isoformat()
    return {
        "timestamp": time, "level": "info", "event": event, "request_id": "req_1", "duration_ms": 123.46,
        **record.known(),
    }  # fmt: skip


RECORDS = [
    RequestRecord(),
    RequestRecord(method="GET", path="/healthz", status=200),
    RequestRecord(method="POST", caller="anna", team="a", model="gpt-5", stream=True, status=200, input_tokens=5),
    RequestRecord(method="POST", caller="ben", team="a", model="gpt-5", stream=True, status=200, input_tokens=6),
    RequestRecord(method="POST", caller="ben", team="a", model="gpt-5", stream=False, status=200, cost_usd=0.25),
    RequestRecord(model='"\\\u00e9', response_id='"}', code="x", estimated=True, unpriced=False, attempts=2),
    RequestRecord(metadata={"project": "x\n", "a": "b"}, safety_identifier={"a": 1}, max_output_tokens=[7]),
    RequestRecord(path="/a\x7fb", response_id="\u2028", upstream_code='"'),
    RequestRecord(path="/" + "p" * 255, response_id="r" * 256, client_address="c" * 255 + "\n"),
    RequestRecord(response_id="\ud800"),
    RequestRecord(tags="project=x,stage=test", response_id="a,b", metadata={"project": "x, y", "é": "z"}),
    RequestRecord(metadata={"project": "Zürich", "a": "sk-proj-abcdefghijkl"}, path="/x", model="m", cost_usd=1.5e-7),
    RequestRecord(metadata={}, inference_s=1e-05, first_event_s=0.0, cost_usd=1e22),
    RequestRecord(response_id="{[", safety_identifier="\u202e", upstream_code="\x7f", incomplete_reason="東京"),
    RequestRecord(response_id="é" * 200, output_tokens=True, cached_tokens=2**64 - 1),
    RequestRecord(response_id="sk-proj-abcdefghijkl", model="Bearer abc.def", safety_identifier="mine"),
    RequestRecord(input_tokens=2**63, response_id=1, finish_reason=True, incomplete_reason=0.5),
    RequestRecord(model="m" * 300, response_id="r\x00" * 300, response_model="\ud800"),
    RequestRecord(**dict.fromkeys(set(RECORDED) - {"metadata"}, 1)),
]


def test_a_line_has_the_fields_of_the_record():
    """Whatever lines came before, and again."""
    lines = RequestLines()
    for record in [*RECORDS, *reversed(RECORDS)]:
        for event in ("request.finished", "background.finished"):
            known = expected(record, event)

            assert line_of(lines, record, event) == known


@pytest.mark.parametrize("others", [[], RECORDS[:5], RECORDS[5:]])
def test_lines_that_are_encoded_together_are_those_of_each(others: list[RequestRecord]):
    """In their order, whatever the others are; a text with a comma or a line end in it is one value."""
    texts = [RequestRecord(response_id="a,b", path="/x"), RequestRecord(tags="a=b,\n  c=d"), RequestRecord()]
    records = [*others, *texts, *others, *texts[::-1]]
    requests = [request_of(record, number=number) for number, record in enumerate(records)]
    found = encode(RequestLines(), *requests).split(b"\n")

    assert [orjson.loads(line) for line in found] == [
        {**expected(record), "request_id": f"req_{number}"} for number, record in enumerate(records)
    ]


def test_texts_with_escapes_are_not_searched_for_keys_each_time_that_they_are_halved(monkeypatch: pytest.MonkeyPatch):
    """Clients may send as many of them as they like, and all other requests wait meanwhile."""
    searched: list[str] = []
    monkeypatch.setattr(request_line, "has_key", searched.append)
    requests = [request_of(RequestRecord(path='/"', response_id="r" * 256)) for _ in range(64)]

    assert encode(RequestLines(), *requests).count(b"\n") == 63
    assert searched == []


def test_a_text_that_is_too_long_is_not_read_as_a_whole():
    """An upstream may send an id of 64 MB: its hash alone takes 15 ms."""

    class Long(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    lines, short = RequestLines(), request_of(RequestRecord(response_id="r"))
    form = lines.form_of(short)
    long = request_of(RequestRecord(response_id=Long("r" * 300)))
    found = lines.encode([form, form], {form: [short, long]})

    assert [orjson.loads(line)["response_id"] for line in found.split(b"\n")] == ["r", "<Long>"]


def test_a_key_is_in_no_line():
    """Neither among the values of one request nor in what lines have in common."""
    key = "sk-proj-abcdefghijkl"
    for name in set(RECORDED) - {"metadata", "stream", "status", "attempts", "estimated", "unpriced"}:
        assert line_of(RequestLines(), RequestRecord(**{name: f"a {key}"}))[name] == "a [redacted]"


def test_what_lines_have_in_common_is_of_types_whose_equal_values_are_encoded_alike():
    """1, 1.0 and true are equal: a field that may be any of them is encoded each time."""
    hints = get_type_hints(RequestRecord)
    kinds = {hints[name] for name in COMMON}

    assert kinds == {str | None, int | None, bool | None}
    assert {*COMMON, *OWN} == {*RECORDED}
    assert not {*COMMON} & {*OWN}


@pytest.mark.parametrize("name", RECORDED)
def test_a_field_decides_the_kind_of_a_line_by_its_value_its_type_or_whether_it_is_known(name: str):
    """A field that is left out would give a line the values of another one. A trace's id is left out if it is unknown."""
    values: list[Any] = [None, {"a": "b"}, {"b": "a"}] if name == "metadata" else [None, 1, "x", "y"]
    kinds = {kind_of(RequestRecord(**{name: value})) for value in values}
    is_foreign = get_type_hints(RequestRecord)[name] is Any
    count = 4 if name in COMMON else 3 if is_foreign or name == "metadata" else 1 if name == "trace_id" else 2

    assert len(kinds) == count


@pytest.mark.parametrize("reason", COUNTED_REASONS)
def test_a_finish_reason_decides_the_kind_of_a_line_where_metrics_depend_on_it(reason: str):
    """Such a request is counted as another outcome than one that was completed."""
    kinds = {kind_of(RequestRecord(finish_reason=each)) for each in ("completed", "x", reason)}

    assert len(kinds) == 2


def test_a_long_finish_reason_is_not_read_as_a_whole():
    """An upstream may send one of 64 MB, which nothing may hash or compare with that of the request before."""

    class Long(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    lines = RequestLines()
    for reason in (Long("r" * 300), Long("r" * 300), Long("s" * 300)):
        line = line_of(lines, RequestRecord(finish_reason=reason))

        assert line["finish_reason"] == "<Long>"


def test_a_traced_request_is_encoded_with_those_that_are_not():
    """Its line has the id of the trace; the others have no such field."""
    lines, records = RequestLines(), [RequestRecord(path="/"), RequestRecord(path="/", trace_id="a" * 32)]
    requests = [request_of(record, number=number) for number, record in enumerate(records)]

    assert lines.form_of(requests[0]) is lines.form_of(requests[1])
    assert [orjson.loads(line).get("trace_id") for line in encode(lines, *requests).split(b"\n")] == [None, "a" * 32]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_a_number_that_json_readers_cannot_have_is_no_number_in_a_line(value: int):
    """An estimate of tokens may be multiplied by the attempts of a call."""
    lines = RequestLines()
    records = [RequestRecord(input_tokens=1), RequestRecord(input_tokens=value), RequestRecord(input_tokens=2)]
    found = encode(lines, *map(request_of, records)).split(b"\n")

    assert [orjson.loads(line)["input_tokens"] for line in found] == [1, "<int>", 2]


def test_a_name_of_metadata_may_need_escapes():
    """The config names the keys that are logged."""
    record = RequestRecord(metadata={'a "b"\\': "c"})

    assert orjson.loads(encode(RequestLines(), request_of(record))) == expected(record)


@pytest.mark.parametrize("others", [(), ("input_tokens",), ("input_tokens", "output_tokens", "cached_tokens")])
def test_a_text_is_cut_however_little_the_other_values_take(others: tuple[str, ...]):
    """The length of all values together shows most lines to have none that is too long."""
    lines = RequestLines()
    for chars in range(LONGEST_CHARS - 40, LONGEST_CHARS + 40):
        record = RequestRecord(response_id="r" * chars, **dict.fromkeys(others, 1))
        known = expected(record)

        assert len(known["response_id"]) == min(chars, LONGEST_CHARS)
        assert line_of(lines, record) == known


def test_few_combinations_are_remembered(monkeypatch: pytest.MonkeyPatch):
    """What is longer than it should be is not."""
    monkeypatch.setattr(request_line, "MAX_FORMS", 3)
    lines, sizes = RequestLines(), []
    for number in range(9):
        line_of(lines, RequestRecord(model=f"m-{number}"))
        line_of(lines, RequestRecord(model="m" * (LONGEST_CHARS + 1 + number)))
        sizes.append(len(lines._forms))

    assert max(sizes) == 3
    assert all(after in (1, before + 1) for before, after in pairwise(sizes))


def test_few_types_of_lines_are_made(monkeypatch: pytest.MonkeyPatch):
    """Each takes memory and time, and callers choose which keys of metadata they send."""
    made: list[int] = []
    make = request_line._line_type
    monkeypatch.setattr(request_line, "MAX_TYPES", 3)
    monkeypatch.setattr(request_line, "MAX_FORMS", 8)
    monkeypatch.setattr(request_line, "_line_type", lambda *names: made.append(1) or make(*names))
    lines, counts = RequestLines(), []
    for number in (*range(8), *range(8), 8, 9):
        record = RequestRecord(metadata={f"key-{number}": "x"})

        assert line_of(lines, record) == expected(record)
        counts.append(len(made))

    assert counts == [1, 2, *[3] * 15, 4]
