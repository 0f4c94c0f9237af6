"""Recorded requests are redacted: sufficient to test a policy, and without text of a caller."""

import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.support.urls import MAX_VALUES
from proxy.app import running
from proxy.commands.policy import Case, outcome_of
from proxy.config.build import build
from proxy.config.plugin_tables import rules_of
from proxy.telemetry.files import QUEUE_BYTES
from proxy.telemetry.recorder import (
    FREE_FORM,
    INCLUDED,
    SERVER,
    WORDS,
    Recorder,
    RecordTable,
    redact,
    redact_request,
    restore,
    restore_query,
)
from proxy.wire.call import Call
from tests.conftest import tables_for
from tests.examples import ANNA, NO_DEADLINE, SCALARS, draw_examples, make_call
from tests.full_disk import disk_full_at
from tests.policies.test_input_urls import MALFORMED, USERINFO
from tests.policies.test_input_urls import PRIVATE as PRIVATE_HOSTS
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
    """Return a strategy for JSON with these leaves, in objects with these names."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=10
    )


NUMBERS = st.none() | st.booleans() | st.integers(-(2**60), 2**60)
BODIES = st.dictionaries(NAMES, values(NUMBERS | SENTENCES, NAMES), max_size=6)
# Fields of free form, in which even a word of the protocol is redacted.
PRIVATE = st.dictionaries(
    NAMES.filter(lambda name: name not in WORDS),
    values(st.just(MARK) | SENTENCES, NAMES.filter(lambda name: name not in WORDS)),
    max_size=6,
)


def redact_body(body: dict[str, Any]) -> Any:
    """Return the recorded form of a request with this body."""
    return redact_request(Call(body, {}))


def outline(value: Any) -> Any:
    """Return the properties of a value that redaction and restoring must preserve."""
    if isinstance(value, dict):
        return [(len(name), outline(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return {"list": [outline(inner) for inner in value]}
    return f"{len(value)} characters" if isinstance(value, str) else value


def read_record(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@NO_DEADLINE
@given(BODIES | PRIVATE)
def test_a_redacted_request_contains_no_text(body: dict[str, Any]):
    """There is none in values, in names that are not plain words, or in paths and user names of URLs."""
    assert MARK.lower() not in orjson.dumps(redact_body(body)).decode().lower()


@NO_DEADLINE
@given(values(NO_URLS | SENTENCES, LINKING))
def test_a_text_in_place_of_a_url_is_not_kept(value: Any):
    """A host is kept only if every parser reads it alike, and a scheme only before a host."""
    body = {"input": [value], "tools": [value], "prompt": {"variables": {"a": value, "b": [value]}}}

    assert MARK.lower() not in orjson.dumps(redact_body(body)).decode().lower()


@NO_DEADLINE
@given(
    st.sampled_from(sorted(FREE_FORM)),
    values(st.just(MARK), st.sampled_from([*sorted(WORDS), SERVER, "image_url", "x"])),
)
def test_free_form_objects_keep_no_words_of_the_protocol(field: str, value: Any):
    """A `role` in metadata or in a tool's schema is a text of the caller."""
    assert MARK not in orjson.dumps(redact_body({"input": [{field: value}], "deep": [{field: value}]})).decode()


@NO_DEADLINE
@given(values(SCALARS | SENTENCES, NAMES | st.text(st.characters(exclude_categories=["Cs"]), max_size=2)))
def test_a_restored_value_has_the_lengths_of_the_original(value: Any):
    """Texts, names, lists and objects keep their lengths and numbers their values, also after a round trip through a file."""
    kept = orjson.loads(orjson.dumps(redact(value)))

    assert outline(restore(kept)) == outline(value)
    assert outline(restore(redact(restore(kept)))) == outline(value)


def test_lengths_are_characters():
    """The protocol counts characters, not bytes."""
    assert redact({"input": "\U0001f600\u00e9"}) == {"input": {"$chars": 2}}


def test_replaced_names_stay_distinct():
    """Eighteen pairs of metadata stay eighteen pairs."""
    kept = redact({"metadata": {f"{letter} ": "v" for letter in "abcdefghijklmnopq"} | {"xx": "v"}})

    assert len(kept["metadata"]) == 18
    assert [len(name) for name in kept["metadata"]] == [2] * 18


def test_words_of_the_protocol_are_kept():
    """Policies decide by them; a sentence in their place is redacted as text."""
    body = {
        "model": "gpt-5.6",
        "include": ["reasoning.encrypted_content", "my own words"],
        "input": [{"type": "message", "role": "user", "content": "Hi"}, {"type": "x" * 65}],
        "tools": [{"type": "mcp", "server_label": "s", "server_url": "https://mcp.example:8443/path?key=1"}],
        "reasoning": {"effort": "low"},
        "stream": True,
        "temperature": 0.5,
    }

    assert redact(body) == body | {
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
    ("address", "restored"),
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
def test_an_address_keeps_its_scheme_and_host(address: str, restored: str):
    """An invalid one stays invalid in the same way, so that a policy for hosts decides the same. The length stays."""
    body = {"input": [{"image_url": address}], "tools": [{"server_url": address}]}

    assert restore(redact_body(body)) == {"input": [{"image_url": restored}], "tools": [{"server_url": restored}]}
    assert len(restored) == len(address)


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
def test_an_address_is_kept_where_a_policy_checks_it(body: dict[str, Any], kept: bool):
    """It is not kept in cited sources, in texts, or in free-form objects."""
    text = orjson.dumps(redact_body(body)).decode()

    assert text.count("anna") == (text.count("https://anna.example/") if kept else 0)
    assert ("anna" in text) == kept


def test_a_request_of_too_many_values_is_recorded_without_addresses():
    """`input_urls` refuses such a request for the same reason."""
    body = {"input": [{"image_url": [None] * (MAX_VALUES + 1)}, {"image_url": "https://h/"}]}

    assert restore(redact_body(body))["input"][1] == {"image_url": "x" * 10}


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
SETTINGS: list[dict[str, Any]] = [
    {}, {"private": True}, {"schemes": ["http", "https", "gs"]}, {"hosts": ["*.example.com"], "schemes": ["https", "http"]},
    {"private": True, "deny_hosts": ["images.*"], "schemes": ["HTTP", "file"[:1]]}, {"file_ids": False}, {"max_data_chars": 8},
]  # fmt: skip


@NO_DEADLINE
@given(LINKS, st.sampled_from(SETTINGS))
def test_input_urls_decides_the_same_for_a_restored_request(body: dict[str, Any], settings: dict[str, Any]):
    """The code is the same too, for URLs in any place and notation."""
    rules = rules_of([{"use": "input_urls", **settings}])
    original = {"model": "m", **body}
    restored = restore(orjson.loads(orjson.dumps(redact_body(original))))

    assert outcome_of(rules, Case(request=restored)).code == outcome_of(rules, Case(request=original)).code


@pytest.mark.parametrize("value", sorted(INCLUDED))
def test_values_of_include_in_a_query_are_kept(tmp_path: Path, value: str):
    """They are kept in each notation of a list that clients use; other parts of the query are not."""
    path = tmp_path / "r.jsonl"
    one = open_recorder(path)
    for query in (f"include[]={value}", f"include={value},{MARK}&key={MARK}", f"include%5B0%5D={value}&{MARK}={MARK}"):
        one.write(make_call(_query=query), ANNA, None)
    one.close()

    assert [line["query"] for line in read_record(path)] == [
        {"include": [value]},
        {"include": [value, {"$chars": len(MARK)}]},
        {"include": [value]},
    ]
    assert restore_query(read_record(path)[1]["query"]) == f"include%5B%5D={value}&include%5B%5D={'x' * len(MARK)}"


@pytest.mark.parametrize("query", ["", "include", "include[]=", f"key={MARK}", f"{MARK}", f"included={MARK}"])
def test_other_queries_are_not_recorded(tmp_path: Path, query: str):
    """The names in them are not recorded either."""
    path = tmp_path / "r.jsonl"
    one = open_recorder(path)
    one.write(make_call(_query=query), ANNA, None)
    one.close()

    assert "query" not in read_record(path)[0]
    assert MARK not in path.read_text()


SIZED = st.fixed_dictionaries(
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


@NO_DEADLINE
@given(SIZED)
def test_policies_on_sizes_decide_the_same_for_a_restored_request(body: dict[str, Any]):
    """`policy diff` therefore prints the decisions that the original request would get."""
    rules = rules_of([
        {"use": "metadata_limits", "max_pairs": 3, "max_key_chars": 6, "max_value_chars": 6},
        {"use": "max_tool_calls", "max": 8, "on_exceed": "reject"},
        {"use": "safety_identifier", "max_chars": 6},
    ])  # fmt: skip
    before = outcome_of(rules, Case(request={"model": "m", **body}))
    after = outcome_of(rules, Case(request=restore(redact({"model": "m", **body}))))

    assert (before.code is None) == (after.code is None)
    assert sorted(before.changed) == sorted(after.changed)


async def post_all(
    http, upstream: FakeUpstream, path: Path | str, *bodies: dict[str, Any] | bytes, **settings: Any
) -> list[int]:
    """Return the statuses of requests to a recording gateway, which is then closed so that its file is complete."""
    tables = tables_for(upstream, record={"path": str(path), **settings}, server={"port": 0, "drain_s": 0})
    statuses = []
    async with running(build(tables)) as gateway:
        for body in bodies:
            raw = body if isinstance(body, bytes) else orjson.dumps(body)
            headers = {"Content-Type": "application/json"}
            async with http.post(f"{gateway}/v1/responses", data=raw, headers=headers) as answer:
                await answer.read()
                statuses.append(answer.status)
    return statuses


async def test_no_text_of_a_request_is_in_the_file(http, upstream: FakeUpstream, tmp_path: Path):
    """The request may be allowed or denied. An id of the wrong type is refused before it can be recorded."""
    path = tmp_path / "requests.jsonl"
    bodies = [{"model": "m", **body, "previous_response_id": None} for body in draw_examples(BODIES | PRIVATE, 60)]
    statuses = await post_all(http, upstream, path, *bodies)
    lines = read_record(path)

    assert MARK.lower() not in path.read_text().lower()
    assert set(statuses) == {200, 400}
    assert [line["decision"] for line in lines] == [{200: "allowed", 400: "denied"}[status] for status in statuses]
    assert [outline(restore(line["request"])) for line in lines] == [outline(body) for body in bodies]


async def test_a_line_has_the_caller_and_the_decision(http, upstream: FakeUpstream, tmp_path: Path):
    """The request is recorded as it arrived, before any policy changed it."""
    path = tmp_path / "requests.jsonl"
    await post_all(http, upstream, path, {"model": "m", "max_tool_calls": 99}, {"model": "m", "metadata": "text"})

    assert read_record(path) == [
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


async def test_invalid_requests_are_not_recorded(http, upstream: FakeUpstream, tmp_path: Path):
    """No policy has checked them."""
    path = tmp_path / "requests.jsonl"
    statuses = await post_all(http, upstream, path, {}, {"model": 7}, {"model": "m", "Metadata": {}})

    assert (statuses, read_record(path)) == ([400, 400, 400], [])


async def test_a_full_disk_loses_lines_but_fails_no_call(http, upstream: FakeUpstream, logged, full_device: str):
    """/dev/full accepts no bytes; the log says that once, and at the end how many lines are missing."""
    statuses = await post_all(http, upstream, full_device, {"model": "m"}, {"model": "m"})
    failures = [line for line in logged if line["event"].startswith("record.")]

    assert statuses == [200, 200]
    assert [(line["event"], line.get("error"), line.get("count")) for line in failures] == [
        ("record.write_failed", "No space left on device", None), ("record.lines_lost", None, 2),
    ]  # fmt: skip
    assert {line["path"] for line in failures} == {full_device}


async def test_a_request_of_any_depth_loses_at_most_its_own_line(http, upstream: FakeUpstream, tmp_path: Path, logged):
    """The redacted form is deeper than the request; one that is too deep for JSON is omitted."""
    path = tmp_path / "requests.jsonl"
    bodies = [b'{"model":"m","input":%b"x"%b}' % (b"[" * depth, b"]" * depth) for depth in range(248, 254)]
    statuses = await post_all(http, upstream, path, *bodies)
    lost = [line for line in logged if line["event"] == "record.write_failed"]

    assert statuses == [200] * 6
    assert len(read_record(path)) + len(lost) == 6
    assert lost != []


def open_recorder(path: Path, **settings: Any) -> Recorder:
    """Return an open recorder."""
    recorder = Recorder(RecordTable(path=path, **settings))
    recorder.open()
    return recorder


def write(recorder: Recorder, number: int) -> None:
    """Write one line, and wait until it is written or lost."""
    recorder.write(make_call(n=number), ANNA, None)
    recorder.flush()


def numbers_in(path: Path) -> list[int]:
    return [line["request"]["n"] for line in read_record(path)]


@pytest.mark.parametrize("is_flushed", [True, False], ids=["line by line", "in batches"])
@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, {"r.jsonl": [6]}),
        (1, {"r.jsonl.1": [4, 5], "r.jsonl": [6]}),
        (2, {"r.jsonl.2": [2, 3], "r.jsonl.1": [4, 5], "r.jsonl": [6]}),
        (9, {"r.jsonl.3": [0, 1], "r.jsonl.2": [2, 3], "r.jsonl.1": [4, 5], "r.jsonl": [6]}),
    ],
)
def test_a_full_file_is_rotated(tmp_path: Path, keep: int, kept: dict[str, list[int]], is_flushed: bool):
    """`keep` older files stay, the newest as .1; no line is split between two files."""
    one = open_recorder(tmp_path / "one.jsonl")
    one.write(make_call(n=0), ANNA, None)
    one.close()
    size = (tmp_path / "one.jsonl").stat().st_size
    (tmp_path / "one.jsonl").unlink()
    rotating = open_recorder(tmp_path / "r.jsonl", max_bytes=size + 1, keep=keep)
    for number in range(7):
        rotating.write(make_call(n=number), ANNA, None)
        if is_flushed:
            rotating.flush()
    rotating.close()

    assert {path.name: numbers_in(path) for path in tmp_path.iterdir()} == kept


def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path):
    """This includes the file that replaces a full one; a file that exists keeps its mode."""
    path = tmp_path / "r.jsonl"
    one = open_recorder(path, max_bytes=1)
    created = path.stat().st_mode & 0o777
    path.chmod(0o640)
    write(one, 0)
    one.close()
    second = open_recorder(path)
    replaced = path.stat().st_mode & 0o777
    second.close()
    path.chmod(0o644)
    open_recorder(path).close()

    assert (created, replaced) == (0o600, 0o600)
    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "r.jsonl.1", path)] == [0o640, 0o644]


@pytest.mark.parametrize("is_flushed", [True, False], ids=["line by line", "in batches"])
def test_a_file_that_cannot_be_rotated_grows(tmp_path: Path, logged, is_flushed: bool):
    """No line is lost, and each line tries the rotation again."""
    (tmp_path / "r.jsonl.1").mkdir()
    (tmp_path / "r.jsonl.1" / "full").touch()
    growing = open_recorder(tmp_path / "r.jsonl", max_bytes=1, keep=1)
    for number in range(3):
        growing.write(make_call(n=number), ANNA, None)
        if is_flushed:
            growing.flush()
    growing.flush()
    is_healthy = growing.is_healthy
    (tmp_path / "r.jsonl.1" / "full").unlink()
    (tmp_path / "r.jsonl.1").rmdir()
    write(growing, 3)
    growing.close()

    assert is_healthy
    assert [line["event"] for line in logged] == ["record.rotation_failed"] * 3
    assert numbers_in(tmp_path / "r.jsonl.1") == [0, 1, 2, 3]


def test_lines_are_lost_while_the_folder_is_missing(tmp_path: Path, logged):
    """Recording continues when the folder exists again."""
    folder = tmp_path / "folder"
    folder.mkdir()
    recorder = open_recorder(folder / "r.jsonl", max_bytes=1)
    (folder / "r.jsonl").unlink()
    folder.rmdir()
    healthy = []
    for number in range(3):
        write(recorder, number)
        healthy.append(recorder.is_healthy)
    folder.mkdir()
    write(recorder, 3)
    healthy.append(recorder.is_healthy)
    recorder.close()

    assert healthy == [True, False, False, True]  # the first line was written to the removed file
    assert [(line["event"], line.get("error"), line.get("count")) for line in logged] == [
        ("record.write_failed", "No such file or directory", None), ("record.lines_lost", None, 2),
    ]  # fmt: skip
    assert numbers_in(folder / "r.jsonl.1") == [3]


def test_no_part_of_a_line_is_left_on_a_full_disk(tmp_path: Path, logged):
    """Each line of the file is JSON, and recording continues when there is room again."""
    path = tmp_path / "r.jsonl"
    recorder = open_recorder(path)
    write(recorder, 0)
    with disk_full_at(path.stat().st_size + 20):
        write(recorder, 1)
    healthy = [recorder.is_healthy]
    write(recorder, 2)
    healthy.append(recorder.is_healthy)
    recorder.close()

    assert (numbers_in(path), healthy) == ([0, 2], [False, True])
    assert [(line["event"], line.get("count")) for line in logged] == [
        ("record.write_failed", None),
        ("record.lines_lost", 1),
    ]


def test_a_line_that_does_not_fit_into_the_queue_is_counted_in_the_log(tmp_path: Path, logged):
    """Later lines are written."""
    path = tmp_path / "r.jsonl"
    recorder = open_recorder(path)
    name = "n" * 58
    large = {f"{name}{number}": 1 for number in range(QUEUE_BYTES // len(name))}  # names of plain words are kept
    recorder.write(make_call(metadata=large), ANNA, None)
    write(recorder, 1)
    recorder.close()

    assert recorder.is_healthy
    assert [(line["event"], line["count"]) for line in logged] == [("record.lines_lost", 1)]
    assert numbers_in(path) == [1]


def test_recording_continues_in_a_file_that_exists(tmp_path: Path):
    """A restart loses no lines."""
    for number in range(2):
        recorder = open_recorder(tmp_path / "r.jsonl")
        recorder.write(make_call(n=number), ANNA, None)
        recorder.close()

    assert numbers_in(tmp_path / "r.jsonl") == [0, 1]


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 400, 400), (0.25, 60, 140), (0.001, 0, 5)])
def test_a_share_of_the_requests_is_recorded(tmp_path: Path, share: float, least: int, most: int):
    """It is a random sample; the default is all requests."""
    random.seed(20)
    sampling = open_recorder(tmp_path / "r.jsonl", share=share)
    for number in range(400):
        sampling.write(make_call(n=number), ANNA, None)
    sampling.close()

    assert least <= len(numbers_in(tmp_path / "r.jsonl")) <= most


def test_a_recorder_that_was_never_opened_records_nothing(tmp_path: Path):
    """It can be flushed and closed once or twice, and its state is healthy."""
    idle = Recorder(RecordTable(path=tmp_path / "r.jsonl"))
    idle.write(make_call(), ANNA, None)
    idle.flush()
    idle.close()
    idle.close()

    assert idle.is_healthy
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_prevents_the_start(tmp_path: Path):
    """The error is raised at the start, not at the first call."""
    with pytest.raises(IsADirectoryError):
        open_recorder(tmp_path)
