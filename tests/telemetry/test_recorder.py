"""Shapes of requests: enough to try a policy on, and no word of what anybody said."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.input_urls import MOST_VALUES
from proxy.commands.policy import Case, fate
from proxy.config.build import rules_of
from proxy.telemetry.recorder import (
    FREE,
    INCLUDED,
    SERVER,
    WORDS,
    Recorder,
    RecordTable,
    query_of,
    request_shape,
    shape_of,
    value_of,
)
from proxy.context import Caller
from proxy.wire.call import Call
from tests.conftest import StartGate, tables_for
from tests.logs import isolated_logs
from tests.policies.test_input_urls import MALFORMED, USERINFO
from tests.policies.test_input_urls import PRIVATE as PRIVATE_HOSTS
from tests.room import disk_full_at
from tests.values import PATIENT, SCALARS, call_with, drawn
from tests.upstream import FakeUpstream

MARK = "ZQXMARK"
SENTENCES = st.sampled_from([
    f"tell {MARK} nothing", f"{MARK}\n", f"\u00e9{MARK}", f"{MARK}@example.com", f"{MARK * 10}",
    f"https://{MARK}@host.example/{MARK}?{MARK}#{MARK}", f"https://host.example/{MARK}?{MARK}#{MARK}",
    f"https://host.example?{MARK}", f"https:// {MARK}/", f"data:text/plain,{MARK}", f"{MARK}: //{MARK}",
])  # fmt: skip
NAMES = st.sampled_from([
    "input", "content", "text", "role", "type", "tools", "name", "parameters", "properties", "metadata", "arguments",
    "image_url", "server_url", "file_data", "output", "prompt", "variables", "id", "user", "brand_new", "include", "status",
    "previous_response_id", "prompt_cache_key", "safety_identifier", "instructions", f"my {MARK}", f"{MARK}\u00e9", "",
    "url", "fileUrl", "photo-url", "file_id", f"{MARK} url",
])  # fmt: skip
LINKING = st.sampled_from(
    ["image_url", "url", "fileUrl", "photo-url", "file_id", "file_data", "server_url", "variables", f"{MARK}_url!"]
)
NO_URLS = st.sampled_from([
    f"https:{MARK}", f"https:/{MARK}", f"https:///{MARK}", f"//{MARK}/", f"{MARK}:{MARK}", f"file-{MARK}", f":{MARK}", MARK,
    f"https://host.example:{MARK}/", f"https://host.example:80{MARK}", f"https://-{MARK}/", f"https://[{MARK}]/", f"data:{MARK}",
    f"{MARK}://-", f"{MARK}@host.example", f"https://{MARK}@host.example", f"https://{MARK}%2e/",
])  # fmt: skip


def values(leaves: st.SearchStrategy[Any], names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """JSON with these leaves, in objects with these names."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=10
    )


NUMBERS = st.none() | st.booleans() | st.integers(-(2**60), 2**60)
BODIES = st.dictionaries(NAMES, values(NUMBERS | SENTENCES, NAMES), max_size=6)
# Where the protocol has no words of its own, not even what looks like one is kept.
PRIVATE = st.dictionaries(
    NAMES.filter(lambda name: name not in WORDS),
    values(st.just(MARK) | SENTENCES, NAMES.filter(lambda name: name not in WORDS)),
    max_size=6,
)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Logs go where this test can see them, whoever sent them elsewhere before."""
    with isolated_logs():
        yield


def shape_in(body: dict[str, Any]) -> Any:
    """What a recorder keeps of a request with this body."""
    return request_shape(Call(Caller("anna", "search"), body, {}))


def outline(value: Any) -> Any:
    """What must be the same in a value and in what is made again of its shape."""
    if isinstance(value, dict):
        return [(len(name), outline(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return {"list": [outline(inner) for inner in value]}
    return f"{len(value)} characters" if isinstance(value, str) else value


def recorded(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@PATIENT
@given(BODIES | PRIVATE)
def test_no_text_is_left_in_a_shape(body: dict[str, Any]):
    """Not in values, not in names that are no words, not in the paths and users of addresses."""
    assert MARK.lower() not in orjson.dumps(shape_in(body)).decode().lower()


@PATIENT
@given(values(NO_URLS | SENTENCES, LINKING))
def test_a_text_where_a_url_should_be_is_not_kept(value: Any):
    """However much it looks like one: a host is kept of what every reader reads alike, a scheme of what has a host."""
    shape = shape_in({"input": [value], "tools": [value], "prompt": {"variables": {"a": value, "b": [value]}}})

    assert MARK.lower() not in orjson.dumps(shape).decode().lower()


@PATIENT
@given(
    st.sampled_from(sorted(FREE)), values(st.just(MARK), st.sampled_from([*sorted(WORDS), SERVER, "image_url", "x"]))
)
def test_what_callers_fill_as_they_like_keeps_no_words(field: str, value: Any):
    """A `role` in metadata or in a tool's schema is the caller's own."""
    assert MARK not in orjson.dumps(shape_in({"input": [{field: value}], "deep": [{field: value}]})).decode()


@PATIENT
@given(values(SCALARS | SENTENCES, NAMES | st.text(st.characters(exclude_categories=["Cs"]), max_size=2)))
def test_what_is_made_of_a_shape_has_its_lengths(value: Any):
    """Texts, names, lists and objects are as long as they were, numbers what they were, after a file between, too."""
    shape = orjson.loads(orjson.dumps(shape_of(value)))

    assert outline(value_of(shape)) == outline(value)
    assert outline(value_of(shape_of(value_of(shape)))) == outline(value)


def test_lengths_are_characters():
    """As the protocol counts, not bytes."""
    assert shape_of({"input": "\U0001f600\u00e9"}) == {"input": {"$chars": 2}}


def test_names_that_are_replaced_stay_apart():
    """Seventeen pairs of metadata stay seventeen."""
    shape = shape_of({"metadata": {f"{letter} ": "v" for letter in "abcdefghijklmnopq"} | {"xx": "v"}})

    assert len(shape["metadata"]) == 18
    assert [len(name) for name in shape["metadata"]] == [2] * 18


def test_words_of_the_protocol_are_kept():
    """Policies judge by them; a sentence in their place is none."""
    body = {
        "model": "gpt-5.6",
        "include": ["reasoning.encrypted_content", "my own words"],
        "input": [{"type": "message", "role": "user", "content": "Hi"}, {"type": "x" * 65}],
        "tools": [{"type": "mcp", "server_label": "s", "server_url": "https://mcp.example:8443/path?key=1"}],
        "reasoning": {"effort": "low"},
        "stream": True,
        "temperature": 0.5,
    }

    assert shape_of(body) == body | {
        "include": ["reasoning.encrypted_content", {"$chars": 12}],
        "input": [{"type": "message", "role": "user", "content": {"$chars": 2}}, {"type": {"$chars": 65}}],
        "tools": [
            {
                "type": "mcp",
                "server_label": {"$chars": 1},
                "server_url": {"$chars": 35, "address": "https://mcp.example:8443/"},
            }
        ],
    }


@pytest.mark.parametrize(
    ("address", "made"),
    [
        ("https://Host.example/a/b?c", "https://host.example/xxxxx"),
        ("http://h", "http://h"),
        ("https://127.1/", "https://127.1/"),
        ("https://[::1]/a", "https://[::1]/x"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://me:pw@host/a", "https://@/xxxxxxxxxx"),
        ("https://host/a b", "https:xxxxxxxxxx"),
        ("gs://bucket/a", "gs://bucket/x"),
        ("note:anna", ":xxxxxxxx"),
        ("see: anna", ":xxxxxxxx"),
        ("data:image/png;base64,AAAA", "data:,xxxxxxxxxxxxxxxxxxxx"),
        ("file:///etc/passwd", "file:xxxxxxxxxxxxx"),
        ("https://[bad", "https:xxxxxx"),
        ("no address", "xxxxxxxxxx"),
        ("", ""),
    ],
)
def test_an_address_keeps_its_scheme_and_its_host(address: str, made: str):
    """And the fault that it has, if any: enough for a policy that allows hosts; the length stays."""
    body = {"input": [{"image_url": address}], "tools": [{"server_url": address}]}

    assert value_of(shape_in(body)) == {"input": [{"image_url": made}], "tools": [{"server_url": made}]}
    assert len(made) == len(address)


ANNAS = "https://anna.example/a?b"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"input": [{"content": [{"image_url": ANNAS}]}]}, True),
        ({"input": [{"content": [{"imageUrl": {"url": ANNAS}}]}]}, True),
        ({"input": [{"photo-url": [ANNAS]}]}, True),
        ({"input": [{"file_id": ANNAS}]}, True),
        ({"input": [{"file_data": ANNAS}]}, True),
        ({"prompt": {"variables": {"photo": {"type": "input_image", "image_url": ANNAS}}}}, True),
        ({"tools": [{"server_url": ANNAS}]}, True),
        ({"prompt": {"variables": {"image_url": ANNAS}}}, False),
        ({"input": [{"content": [{"annotations": [{"url": ANNAS}]}]}]}, False),
        ({"input": [{"action": {"url": ANNAS}}]}, False),
        ({"input": [{"content": ANNAS}], "instructions": ANNAS, "user": ANNAS}, False),
        ({"metadata": {"image_url": ANNAS, "server_url": ANNAS}}, False),
        ({"tools": [{"headers": {"callback_url": ANNAS}}]}, False),
        ({"input": [{"my image_url": ANNAS}]}, False),
    ],
)
def test_an_address_is_kept_where_a_policy_judges_it(body: dict[str, Any], kept: bool):
    """Not where it tells what was read, not in texts, not in what callers fill as they like."""
    told = orjson.dumps(shape_in(body)).decode()

    assert told.count("anna") == (told.count("https://anna.example/") if kept else 0)
    assert ("anna" in told) == kept


def test_a_request_of_too_many_values_is_recorded_without_addresses():
    """The policy refuses it for that, and the recorder is not in its way."""
    body = {"input": [{"image_url": [None] * (MOST_VALUES + 1)}, {"image_url": "https://h/"}]}

    assert value_of(shape_in(body))["input"][1] == {"image_url": "x" * 10}


PLACES = st.sampled_from(["image_url", "imageUrl", "file_url", "photo-url", "file_data", "file_id", "url", "text"])
HOSTS = [
    *PRIVATE_HOSTS,
    *MALFORMED,
    *USERINFO,
    "images.example.com",
    "images.example.com.:8443",
    "b.example?q=@",
    "c.d#e",
]
URLS = st.sampled_from(
    [f"{scheme}://{host}{path}" for host in HOSTS for scheme, path in (("https", "/a"), ("HTTP", ""))]
    + [
        "",
        "file-1",
        "a:b",
        ":",
        "data:,abcdefghijklm",
        "DATA:,",
        "gs://bucket/a",
        "file:///etc",
        "https:/a",
        "no scheme",
        "https://h/\n",
    ]
)
LINKS = st.fixed_dictionaries(
    {},
    optional={
        "input": st.lists(st.fixed_dictionaries({"content": values(URLS, PLACES)}), max_size=2),
        "prompt": st.fixed_dictionaries({"variables": st.dictionaries(PLACES, values(URLS, PLACES), max_size=2)}),
        "tools": st.lists(st.dictionaries(PLACES, values(URLS, PLACES), max_size=2), max_size=2),
    },
)
JUDGES: list[dict[str, Any]] = [
    {}, {"private": True}, {"schemes": ["http", "https", "gs"]}, {"hosts": ["*.example.com"], "schemes": ["https", "http"]},
    {"private": True, "deny_hosts": ["images.*"], "schemes": ["HTTP", "file"[:1]]}, {"file_ids": False}, {"max_data_chars": 8},
]  # fmt: skip


@PATIENT
@given(LINKS, st.sampled_from(JUDGES))
def test_input_urls_decides_the_same_of_a_shape(body: dict[str, Any], settings: dict[str, Any]):
    """With the same code, wherever a URL stands, in any notation."""
    rules = rules_of([{"use": "input_urls", **settings}])
    shape = orjson.loads(orjson.dumps(shape_in({"model": "m", **body})))

    assert fate(rules, Case(request=value_of(shape))).code == fate(rules, Case(request={"model": "m", **body})).code


@pytest.mark.parametrize("value", sorted(INCLUDED))
def test_what_the_protocol_includes_is_kept_of_a_query(tmp_path: Path, value: str):
    """In each of the ways that clients write a list; nothing else that stands there."""
    path = tmp_path / "r.jsonl"
    one = recorder(path)
    for query in (f"include[]={value}", f"include={value},{MARK}&key={MARK}", f"include%5B0%5D={value}&{MARK}={MARK}"):
        one.write(replace(call_with(), query=query), None)
    one.close()

    assert [line["query"] for line in recorded(path)] == [
        {"include": [value]},
        {"include": [value, {"$chars": len(MARK)}]},
        {"include": [value]},
    ]
    assert query_of(recorded(path)[1]["query"]) == f"include%5B%5D={value}&include%5B%5D={'x' * len(MARK)}"


@pytest.mark.parametrize("query", ["", "include", "include[]=", f"key={MARK}", f"{MARK}", f"included={MARK}"])
def test_a_query_that_no_policy_judges_is_not_recorded(tmp_path: Path, query: str):
    """Not even the names in it."""
    path = tmp_path / "r.jsonl"
    one = recorder(path)
    one.write(replace(call_with(), query=query), None)
    one.close()

    assert "query" not in recorded(path)[0]
    assert MARK not in path.read_text()


JUDGED = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.dictionaries(st.text(max_size=12), st.text(max_size=12) | NUMBERS, max_size=5) | NUMBERS,
        "safety_identifier": st.text(max_size=12) | NUMBERS,
        "max_tool_calls": st.integers(-1, 12) | SENTENCES,
        "max_output_tokens": st.integers(-1, 200),
        "input": SENTENCES
        | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": SENTENCES}), max_size=6),
    },
)


@PATIENT
@given(JUDGED)
def test_policies_on_sizes_decide_the_same_of_a_shape(body: dict[str, Any]):
    """What would be refused is refused, what would pass passes: `policy diff` tells the truth."""
    rules = rules_of([
        {"use": "metadata_limits", "max_pairs": 3, "max_key_chars": 6, "max_value_chars": 6},
        {"use": "max_tool_calls", "max": 8, "on_exceed": "reject"},
        {"use": "safety_identifier", "max_chars": 6},
    ])  # fmt: skip
    before = fate(rules, Case(request={"model": "m", **body}))
    after = fate(rules, Case(request=value_of(shape_of({"model": "m", **body}))))

    assert (before.code is None) == (after.code is None)
    assert sorted(before.changed) == sorted(after.changed)


async def ask(http, gate: str, body: dict[str, Any] | bytes) -> int:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    async with http.post(f"{gate}/v1/responses", data=raw, headers={"Content-Type": "application/json"}) as answer:
        await answer.read()
        return answer.status


async def test_no_text_of_a_request_reaches_the_file(start_gate: StartGate, http, upstream: FakeUpstream, tmp_path):
    """Whatever was asked, allowed or denied."""
    path = tmp_path / "requests.jsonl"
    gate = await start_gate(tables_for(upstream, record={"path": str(path)}))
    bodies = [{"model": "m", **body} for body in drawn(BODIES | PRIVATE, 60)]
    statuses = [await ask(http, gate, body) for body in bodies]
    told = recorded(path)

    assert MARK.lower() not in path.read_text().lower()
    assert set(statuses) == {200, 400}
    assert [line["decision"] for line in told] == [{200: "allowed", 400: "denied"}[status] for status in statuses]
    assert [outline(value_of(line["request"])) for line in told] == [outline(body) for body in bodies]


async def test_a_line_says_who_asked_and_what_became_of_it(start_gate: StartGate, http, upstream, tmp_path: Path):
    """The request as it came, before any policy changed it."""
    path = tmp_path / "requests.jsonl"
    gate = await start_gate(tables_for(upstream, record={"path": str(path)}))
    await ask(http, gate, {"model": "m", "max_tool_calls": 99})
    await ask(http, gate, {"model": "m", "metadata": "text"})

    assert recorded(path) == [
        {
            "caller": "anybody",
            "team": "anybody",
            "decision": "allowed",
            "code": None,
            "request": {"model": "m", "max_tool_calls": 99},
        },
        {
            "caller": "anybody",
            "team": "anybody",
            "decision": "denied",
            "code": "metadata_limits.not_an_object",
            "request": {"model": "m", "metadata": {"$chars": 4}},
        },
    ]


async def test_what_is_no_request_is_not_recorded(start_gate: StartGate, http, upstream: FakeUpstream, tmp_path: Path):
    """Policies never saw it."""
    path = tmp_path / "requests.jsonl"
    gate = await start_gate(tables_for(upstream, record={"path": str(path)}))
    statuses = [await ask(http, gate, body) for body in ({}, {"model": 7}, {"model": "m", "Metadata": {}})]

    assert (statuses, recorded(path)) == ([400, 400, 400], [])


async def test_a_full_disk_costs_lines_and_no_call(start_gate: StartGate, http, upstream: FakeUpstream, logged):
    """/dev/full takes nothing."""
    gate = await start_gate(tables_for(upstream, record={"path": "/dev/full"}))
    statuses = [await ask(http, gate, {"model": "m"}) for _ in range(2)]

    assert statuses == [200, 200]
    assert [line["error"] for line in logged if line["event"] == "record.failed"] == ["No space left on device"] * 2


async def test_a_request_of_any_depth_costs_at_most_its_line(start_gate: StartGate, http, upstream, tmp_path, logged):
    """A shape is deeper than its request; one that JSON cannot hold is left out."""
    path = tmp_path / "requests.jsonl"
    gate = await start_gate(tables_for(upstream, record={"path": str(path)}))
    bodies = [b'{"model":"m","input":%b"x"%b}' % (b"[" * depth, b"]" * depth) for depth in range(248, 254)]
    statuses = [await ask(http, gate, body) for body in bodies]
    lost = [line for line in logged if line["event"] == "record.failed"]

    assert statuses == [200] * 6
    assert len(recorded(path)) + len(lost) == 6
    assert lost != []


def recorder(path: Path, **settings: Any) -> Recorder:
    made = Recorder(RecordTable(path=path, **settings))
    made.open()
    return made


def lines_in(path: Path) -> list[int]:
    return [line["request"]["n"] for line in recorded(path)]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, {"r.jsonl": [6]}),
        (1, {"r.jsonl.1": [4, 5], "r.jsonl": [6]}),
        (2, {"r.jsonl.2": [2, 3], "r.jsonl.1": [4, 5], "r.jsonl": [6]}),
        (9, {"r.jsonl.3": [0, 1], "r.jsonl.2": [2, 3], "r.jsonl.1": [4, 5], "r.jsonl": [6]}),
    ],
)
def test_a_file_that_has_grown_is_put_aside(tmp_path: Path, keep: int, kept: dict[str, list[int]]):
    """`keep` files stay, the newest as .1; no line is cut in two."""
    one = recorder(tmp_path / "one.jsonl")
    one.write(call_with(n=0), None)
    one.close()
    size = (tmp_path / "one.jsonl").stat().st_size
    (tmp_path / "one.jsonl").unlink()
    rotating = recorder(tmp_path / "r.jsonl", max_bytes=size + 1, keep=keep)
    for number in range(7):
        rotating.write(call_with(n=number), None)
    rotating.close()

    assert {path.name: lines_in(path) for path in tmp_path.iterdir()} == kept


def test_a_new_file_is_its_owners_alone(tmp_path: Path):
    """The one that takes the place of a full one, too; a file that is there keeps the mode that somebody gave it."""
    path = tmp_path / "r.jsonl"
    one = recorder(path, max_bytes=1)
    made = path.stat().st_mode & 0o777
    path.chmod(0o640)
    one.write(call_with(n=0), None)
    one.close()
    path.chmod(0o644)
    recorder(path).close()

    assert made == 0o600
    assert [place.stat().st_mode & 0o777 for place in (tmp_path / "r.jsonl.1", path)] == [0o640, 0o644]


def test_a_file_that_cannot_be_put_aside_grows(tmp_path: Path, logged):
    """Recording goes on, each time it is tried again, and no call notices."""
    (tmp_path / "r.jsonl.1").mkdir()
    (tmp_path / "r.jsonl.1" / "full").touch()
    growing = recorder(tmp_path / "r.jsonl", max_bytes=1, keep=1)
    for number in range(3):
        growing.write(call_with(n=number), None)
    (tmp_path / "r.jsonl.1" / "full").unlink()
    (tmp_path / "r.jsonl.1").rmdir()
    growing.write(call_with(n=3), None)
    growing.close()

    assert [line["event"] for line in logged] == ["record.failed"] * 3
    assert lines_in(tmp_path / "r.jsonl.1") == [0, 1, 2, 3]


def test_a_file_that_is_gone_for_good_costs_lines(tmp_path: Path, logged):
    """Whoever removes the folder ends the recording, not the gate."""
    folder = tmp_path / "folder"
    folder.mkdir()
    lost = recorder(folder / "r.jsonl", max_bytes=1)
    (folder / "r.jsonl").unlink()
    folder.rmdir()
    for number in range(3):
        lost.write(call_with(n=number), None)
    lost.close()

    assert [line["event"] for line in logged] == ["record.failed"]


def test_no_half_line_is_left_when_the_room_ends_within_it(tmp_path: Path, logged):
    """A file is lines of JSON, whatever happens."""
    path = tmp_path / "r.jsonl"
    narrow = recorder(path)
    narrow.write(call_with(n=0), None)
    with disk_full_at(path.stat().st_size + 20):
        narrow.write(call_with(n=1), None)
    narrow.write(call_with(n=2), None)
    narrow.close()

    assert (lines_in(path), [line["event"] for line in logged]) == ([0, 2], ["record.failed"])


def test_recording_goes_on_in_the_file_that_is_there(tmp_path: Path):
    """A restart loses nothing."""
    for number in range(2):
        again = recorder(tmp_path / "r.jsonl")
        again.write(call_with(n=number), None)
        again.close()

    assert lines_in(tmp_path / "r.jsonl") == [0, 1]


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 400, 400), (0.25, 60, 140), (0.001, 0, 5)])
def test_a_share_of_the_requests_is_recorded(tmp_path: Path, share: float, least: int, most: int):
    """Chosen by chance; all of them by default."""
    random.seed(20)
    sampling = recorder(tmp_path / "r.jsonl", share=share)
    for number in range(400):
        sampling.write(call_with(n=number), None)
    sampling.close()

    assert least <= len(lines_in(tmp_path / "r.jsonl")) <= most


def test_who_was_never_opened_records_nothing(tmp_path: Path):
    """Nor does closing it hurt, once or twice."""
    idle = Recorder(RecordTable(path=tmp_path / "r.jsonl"))
    idle.write(call_with(), None)
    idle.close()
    idle.close()

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_keeps_the_gate_from_starting(tmp_path: Path):
    """Before the first call, not at it."""
    with pytest.raises(IsADirectoryError):
        recorder(tmp_path)
