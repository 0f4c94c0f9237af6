"""The audit file has a line for every decision, and `verify` finds every change to a line."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from proxy.app import running
from proxy.config.build import build
from proxy.telemetry.audit import Audit, AuditTable, Decision
from proxy.telemetry.audit_chain import FIRST_PREVIOUS, START, Chain, Head, Verification, verify
from proxy.telemetry.files import QUEUE_BYTES
from proxy.wire.errors import Unavailable
from tests.conftest import StartGateway, tables_for
from tests.full_disk import disk_full_at
from tests.upstream import CANONICAL, FakeUpstream, streaming

REQUEST = {"model": "gpt-5.6", "input": "Hi"}
DECISION = Decision("metadata_limits", "0123456789ab", "allowed", None, None, "anna", "m")


def open_audit(path: Path, **settings: Any) -> Audit:
    """Return an open audit file."""
    audit = Audit(AuditTable(path=path, **settings))
    audit.open()
    return audit


def write_lines(path: Path, *models: str, **settings: Any) -> list[bytes]:
    """Write one decision per model; return the lines of the file with their line ends."""
    audit = open_audit(path, **settings)
    for model in models:
        audit.write("req_1", Decision("max_tool_calls", "0123456789ab", "changed", None, None, "anna", model))
    audit.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """Five lines of an audit file; one has a name that JSON must escape."""
    return write_lines(tmp_path / "five.jsonl", "one", "two", "thr\x1fee", "vier\u00e4", "five")


def first_altered(lines: Iterable[bytes]) -> tuple[int, int | None]:
    """Return how many lines are unaltered, and the number of the first that is altered."""
    found = verify(lines)
    return found.count, found.altered


def decisions_in(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def post(http, gateway: str, **fields: Any) -> int:
    async with http.post(f"{gateway}/v1/responses", json=REQUEST | fields) as answer:
        await answer.read()
        return answer.status


async def post_all(http, tables: dict[str, Any], *requests: dict[str, Any]) -> list[int]:
    """Return the statuses of requests to a gateway, which is then closed so that its files are complete."""
    async with running(build(tables | {"server": {"port": 0, "drain_s": 0}})) as gateway:
        return [await post(http, gateway, **fields) for fields in requests]


def test_lines_form_a_chain(lines: list[bytes]):
    """Each line contains the hash of the line before it; the first contains zeros."""
    parsed = [orjson.loads(line) for line in lines]

    assert first_altered(lines) == (5, None)
    assert [line["previous"] for line in parsed] == [FIRST_PREVIOUS, *(line["hash"] for line in parsed[:-1])]
    assert first_altered([]) == (0, None)


@pytest.mark.parametrize("mask", [0x01, 0x07, 0x20, 0x2A, 0x80, 0xFF])
def test_every_changed_byte_is_found(lines: list[bytes], mask: int):
    """The line of any changed byte is reported, even in a line end or in the case of an escape."""
    whole = b"".join(lines)
    missed = []
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= mask
        number = whole[:position].count(b"\n") + 1
        if first_altered(bytes(altered).splitlines(keepends=True)) != (number - 1, number):
            missed.append(position)

    assert missed == []


@pytest.mark.parametrize("removed", [0, 1, 3])
def test_a_removed_line_is_found_at_its_position(lines: list[bytes], removed: int):
    """The line now at its position does not continue the line before it."""
    assert first_altered(lines[:removed] + lines[removed + 1 :]) == (removed, removed + 1)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 4), (3, 4)])
def test_swapped_lines_are_found_at_the_first_of_them(lines: list[bytes], one: int, other: int):
    """The order of the lines is part of the chain."""
    lines[one], lines[other] = lines[other], lines[one]

    assert first_altered(lines) == (one, one + 1)


@pytest.mark.parametrize("inserted", [b"\n", b"{}\n", b"[]\n", b"null\n", b"7\n", b"not JSON\n", b"\xff\n"])
@pytest.mark.parametrize("position", [0, 2, 5])
def test_an_inserted_line_is_found(lines: list[bytes], inserted: bytes, position: int):
    """The inserted line may be empty or not JSON."""
    assert first_altered([*lines[:position], inserted, *lines[position:]]) == (position, position + 1)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_repeated_line_is_found(lines: list[bytes], position: int):
    """An intact line in the wrong position breaks the chain."""
    repeated = [*lines[: position + 1], lines[position], *lines[position + 1 :]]

    assert first_altered(repeated) == (position + 1, position + 2)


def test_a_forged_line_with_a_valid_hash_is_found_at_the_next_line(lines: list[bytes], tmp_path: Path):
    """A forger can compute the hash of one line; the original line after it does not continue it."""
    path = tmp_path / "forged.jsonl"
    path.write_bytes(b"".join(lines[:2]))
    forged = write_lines(path, "forged")[2]

    assert first_altered([*lines[:2], forged, *lines[3:]]) == (3, 4)


def test_the_same_object_in_other_bytes_counts_as_altered(lines: list[bytes]):
    """A JSON parser ignores the order of names, spaces and repeated names, but the chain does not."""
    parsed = orjson.loads(lines[1])
    variants = [
        orjson.dumps(dict(reversed(parsed.items()))) + b"\n",
        lines[1].replace(b'"model":', b'"model": '),
        lines[1].replace(b'"model":', b'"model":"other","model":'),
    ]

    assert [first_altered([lines[0], variant, *lines[2:]]) for variant in variants] == [(1, 2)] * 3


def test_a_chain_without_its_last_lines_is_intact(lines: list[bytes]):
    """Only a copy of the last hash in another place proves that lines are missing."""
    assert first_altered(lines[:3]) == (3, None)


def heads_of(lines: Iterable[bytes]) -> list[Head]:
    return [Head(line["seq"], line["hash"]) for line in map(orjson.loads, lines)]


def test_a_head_that_was_kept_shows_what_is_missing_or_was_replaced(lines: list[bytes], tmp_path: Path):
    """A file that was cut, emptied, or written anew by someone who can compute hashes is intact by itself."""
    second, last = heads_of(lines)[1], heads_of(lines)[4]
    anew = write_lines(tmp_path / "anew.jsonl", "one", "two", "three", "four", "five")
    kept = [second, last]

    assert verify(lines, expected=kept) == Verification(last, 5, None, [])
    assert verify(lines[:3], expected=kept).contradicted == [last]
    assert verify([], expected=kept).contradicted == kept
    assert verify(anew, expected=kept).contradicted == kept
    assert verify(anew).altered is None


def test_without_the_secret_no_line_can_be_written(tmp_path: Path):
    """A line, or a whole file, that was made with another secret or none does not verify, nor does one without it."""
    path, secret = tmp_path / "audit.jsonl", "a secret of more than 32 characters"
    sealed = write_lines(path, "one", "two", secret=SecretStr(secret))
    plain = write_lines(tmp_path / "plain.jsonl", "one", "two")

    assert (verify(sealed, key=secret.encode()).count, verify(sealed).altered) == (2, 1)
    assert verify(sealed, key=b"x" * 32).altered == verify(plain, key=secret.encode()).altered == 1


def test_a_file_that_was_rotated_is_continued_by_the_same_chain(tmp_path: Path):
    """The new file follows the last line of the one before, which is not written to any more."""
    path = tmp_path / "audit.jsonl"
    audit = open_audit(path)
    audit.write("req_1", DECISION)
    audit.flush()
    before = path.rename(tmp_path / "audit.jsonl.1")
    audit.follow_rotation()
    for _ in range(2):
        audit.write("req_2", DECISION)
    audit.close()
    old, new = (file.read_bytes().splitlines(keepends=True) for file in (before, path))

    assert (len(old), len(new), first_altered([*old, *new])) == (1, 2, (3, None))
    assert first_altered(new) == (0, 1)
    assert verify(new, after=heads_of(old)[0]).count == 2


def test_a_file_that_was_not_rotated_is_kept(tmp_path: Path, logged):
    """SIGHUP reads the config again too; the file is locked already, and that is no fault."""
    audit = open_audit(tmp_path / "audit.jsonl")
    for _ in range(2):
        audit.write("req_1", DECISION)
        audit.flush()
        audit.follow_rotation()
    audit.write("req_1", DECISION)
    audit.close()

    assert first_altered((tmp_path / "audit.jsonl").read_bytes().splitlines(keepends=True)) == (3, None)
    assert [line["event"] for line in logged if line["log_level"] != "info"] == []


def test_another_chain_is_not_continued(lines: list[bytes], tmp_path: Path, logged):
    """If the path has the file of another gateway after a rotation, lines are still written to the old file."""
    path = tmp_path / "audit.jsonl"
    audit = open_audit(path)
    audit.write("req_1", DECISION)
    audit.flush()
    before = path.rename(tmp_path / "audit.jsonl.1")
    path.write_bytes(b"".join(lines))
    audit.follow_rotation()
    audit.write("req_2", DECISION)
    audit.close()

    assert path.read_bytes() == b"".join(lines)
    assert first_altered(before.read_bytes().splitlines(keepends=True)) == (2, None)
    assert "file.reopen_failed" in [line["event"] for line in logged]


def test_the_head_is_logged_now_and_then(tmp_path: Path, logged):
    """After `anchor_every` lines and at the end: the log is another place."""
    path = tmp_path / "audit.jsonl"
    audit = open_audit(path, anchor_every=2)
    for _ in range(5):
        audit.write("req_1", DECISION)
        audit.flush()
    audit.close()
    heads = heads_of(path.read_bytes().splitlines())

    assert [line["head"] for line in logged if line["event"] == "audit.anchored"] == [str(heads[n]) for n in (1, 3, 4)]
    assert Head.parse(str(heads[0])) == heads[0] != START


async def test_calls_are_refused_while_nothing_can_be_written_if_the_config_says_so(
    http, start_gateway: StartGateway, upstream: FakeUpstream, full_device: str
):
    """The first call finds it out; then they get 503, and `/readyz` too, because calls would fail."""
    gateway = await start_gateway(tables_for(upstream, audit={"path": full_device, "on_failure": "refuse"}))
    statuses = [await post(http, gateway)]
    async with asyncio.timeout(30):
        while (status := await post(http, gateway)) == 200:
            statuses.append(status)
    async with http.post(f"{gateway}/v1/responses", json=REQUEST) as answer:
        error = (await answer.json())["error"]
    async with asyncio.timeout(30):
        status = 200
        while status == 200:  # the state is probed at most once per second
            async with http.get(f"{gateway}/readyz") as answer:
                status, report = answer.status, await answer.json()

    assert (error["code"], status) == ("audit_unavailable", 503)
    assert (report["audit"], report["status"]) == ("degraded", "unready")


def test_calls_pass_again_as_soon_as_lines_can_be_written(tmp_path: Path, logged):
    """Without another call: the report of what was lost is tried again."""
    path = tmp_path / "audit.jsonl"
    audit = open_audit(path, on_failure="refuse")
    with disk_full_at(10):
        audit.write("req_1", DECISION)
        audit.flush()
        with pytest.raises(Unavailable):
            audit.check()
    until = time.monotonic() + 30
    while not audit.is_healthy and time.monotonic() < until:
        time.sleep(0.01)
    audit.check()
    audit.close()

    assert [line["lost"] for line in decisions_in(path)] == [1]
    assert logged[0]["event"] == "audit.write_failed"


async def test_a_restarted_gateway_continues_the_chain(http, upstream: FakeUpstream, tmp_path: Path):
    """Three gateways in sequence write one chain."""
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        await post_all(http, tables_for(upstream, audit={"path": str(path)}), {})

    with path.open("rb") as file:
        assert first_altered(file) == (9, None)


@pytest.mark.parametrize("chars", [60_000, 65_400, 70_000, 300_000])
def test_the_chain_continues_after_a_line_of_any_length(tmp_path: Path, chars: int):
    """A long last line does not prevent the start."""
    path = tmp_path / "audit.jsonl"
    write_lines(path, "short")
    write_lines(path, "m" * chars)

    assert first_altered(write_lines(path, "short")) == (3, None)


@pytest.mark.parametrize(
    "last",
    [b"{", b"{}\n", b"[]\n", b'"hash"\n', b"null\n", b"\xff\n", b"\n", b'{"hash":"00"}', b'{"a":1}\n'],
)
def test_a_file_that_does_not_end_in_an_audit_line_is_refused(lines: list[bytes], tmp_path: Path, last: bytes):
    """An operator must decide about an incomplete line or one of another kind; the message names the remedy."""
    path = tmp_path / "five.jsonl"
    path.write_bytes(b"".join(lines) + last)

    with pytest.raises(ValueError, match="last line of the audit file is incomplete, or not an audit line") as caught:
        Audit(AuditTable(path=path)).open()
    assert str(caught.value).startswith(f"{path}: ")
    assert path.read_bytes() == b"".join(lines) + last


def test_a_file_that_cannot_be_written_prevents_the_start(tmp_path: Path):
    """The error is raised at the start, not at the first call."""
    with pytest.raises(IsADirectoryError):
        Audit(AuditTable(path=tmp_path)).open()
    with pytest.raises(FileNotFoundError):
        Audit(AuditTable(path=tmp_path / "none" / "audit.jsonl")).open()


def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path):
    """It contains names of callers; a file that exists keeps its mode."""
    path = tmp_path / "audit.jsonl"
    write_lines(path, "one")
    created = path.stat().st_mode & 0o777
    path.chmod(0o640)
    write_lines(path, "two")

    assert (created, path.stat().st_mode & 0o777) == (0o600, 0o640)


def test_an_audit_that_was_never_opened_writes_nothing(tmp_path: Path):
    """It can be flushed and closed, and its state is healthy."""
    audit = Audit(AuditTable(path=tmp_path / "audit.jsonl"))
    audit.write("req_1", DECISION)
    audit.flush()
    audit.close()

    assert audit.is_healthy
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_loses_lines_but_fails_no_call(http, upstream: FakeUpstream, logged, full_device: str):
    """/dev/full accepts nothing; the log says that once, and at the end how many lines are missing."""
    statuses = await post_all(http, tables_for(upstream, audit={"path": full_device}), {}, {}, {})
    failures = [line for line in logged if line["event"].startswith("audit.")]

    assert statuses == [200, 200, 200]
    assert [(line["event"], line.get("error"), line.get("count")) for line in failures] == [
        ("audit.write_failed", "No space left on device", None), ("audit.lines_lost", None, 9),
    ]  # fmt: skip
    assert {line["path"] for line in failures} == {full_device}


async def test_lost_decisions_degrade_readiness(
    http, start_gateway: StartGateway, upstream: FakeUpstream, full_device: str
):
    """`/readyz` stays 200, as calls are still answered, and names the file."""
    gateway = await start_gateway(tables_for(upstream, audit={"path": full_device}))
    async with http.get(f"{gateway}/readyz") as answer:
        before = await answer.json()
    await post(http, gateway)
    report = before
    async with asyncio.timeout(30):
        while report == before:  # the state is probed at most once per second
            async with http.get(f"{gateway}/readyz") as answer:
                report = await answer.json()

    assert (before["audit"], before["status"]) == ("up", "ready")
    assert (answer.status, report["audit"], report["status"]) == (200, "degraded", "degraded")


def test_no_part_of_a_line_is_left_on_a_full_disk(lines: list[bytes], tmp_path: Path, logged):
    """The chain stays intact and continues with the number of lost lines as soon as there is room."""
    path = tmp_path / "five.jsonl"
    size = path.stat().st_size
    audit = open_audit(path)
    healthy = []
    for room in (300, 100, 1):
        with disk_full_at(size + room):
            audit.write("req_1", DECISION)
            audit.flush()

        assert path.stat().st_size == size
        healthy.append(audit.is_healthy)
    audit.write("req_1", DECISION)
    audit.flush()
    healthy.append(audit.is_healthy)
    audit.close()
    *_, report, last = decisions_in(path)

    assert [(line["event"], line.get("count")) for line in logged] == [
        ("audit.write_failed", None), ("audit.lines_lost", 3), ("audit.anchored", None),
    ]  # fmt: skip
    assert healthy == [False, False, False, True]
    assert list(report) == ["time", "lost", "seq", "previous", "hash"]
    assert (report["lost"], last["policy"]) == (3, "metadata_limits")
    assert first_altered(path.read_bytes().splitlines(keepends=True)) == (7, None)


@pytest.mark.usefixtures("logged")
def test_every_decision_is_a_line_or_is_counted_in_a_line(lines: list[bytes], tmp_path: Path):
    """Lines that fit are written. A report that does not fit is written later and does not count as a decision."""
    path = tmp_path / "five.jsonl"
    audit = open_audit(path)
    for room in (len(lines[-1]) + 100, 220, 1):
        with disk_full_at(path.stat().st_size + room):
            for _ in range(4):
                audit.write("req_1", DECISION)
            audit.flush()
    audit.close()
    written = decisions_in(path)[5:]
    lost = [line["lost"] for line in written if "lost" in line]

    assert len(written) - len(lost) + sum(lost) == 12
    assert len(lost) >= 2
    assert first_altered(path.read_bytes().splitlines(keepends=True)) == (5 + len(written), None)


def test_a_decision_that_does_not_fit_into_the_queue_is_counted(tmp_path: Path):
    """A line has the number of missing decisions; the decisions after it are written."""
    path = tmp_path / "audit.jsonl"
    audit = open_audit(path)
    audit.write("req_1", Decision("models", "0123456789ab", "changed", None, None, "anna", "m" * QUEUE_BYTES))
    audit.flush()
    audit.write("req_1", DECISION)
    audit.close()
    report, decision = decisions_in(path)

    assert audit.is_healthy
    assert (report["lost"], decision["model"]) == (1, "m")
    with path.open("rb") as file:
        assert first_altered(file) == (2, None)


@pytest.mark.parametrize("change", [(b'"lost":2', b'"lost":1'), None], ids=["changed", "removed"])
@pytest.mark.usefixtures("logged")  # on stdout they would be subject to the limit, too
def test_the_number_of_lost_lines_is_part_of_the_chain(tmp_path: Path, change: tuple[bytes, bytes] | None):
    """It cannot be changed or removed without breaking the chain."""
    path = tmp_path / "audit.jsonl"
    size = len(b"".join(write_lines(path, "one")))
    audit = open_audit(path)
    with disk_full_at(size):
        for _ in range(2):
            audit.write("req_1", DECISION)
            audit.flush()
    audit.write("req_1", DECISION)
    audit.close()
    first, report, last = path.read_bytes().splitlines(keepends=True)

    assert first_altered([first, report, last]) == (3, None)
    assert first_altered([first, *([report.replace(*change)] if change else []), last]) == (1, 2)


async def test_calls_that_pass_unchanged_need_not_be_written(http, upstream: FakeUpstream, tmp_path: Path):
    """With `allowed = false` only changes and refusals are written."""
    path = tmp_path / "audit.jsonl"
    tables = tables_for(upstream, audit={"path": str(path), "allowed": False})
    await post_all(http, tables, {"max_tool_calls": 8}, {}, {"metadata": 7})

    assert [line["decision"] for line in decisions_in(path)] == ["changed", "refused"]


COUNTED = [{"type": "mcp_call", "id": f"mcp_{n}", "server_label": "s", "name": "f", "arguments": "{}"} for n in (0, 1)]
OVER_BUDGET = CANONICAL[: CANONICAL.index(b"event: response.output_item.added")] + b"".join(
    b"event: response.output_item.added\ndata: %b\n\n"
    % orjson.dumps(
        {"type": "response.output_item.added", "sequence_number": 2 + n, "output_index": n, "item": COUNTED[n]}
    )
    for n in (0, 1)
)
# A decision, the policy that makes it, fields of the request, status, code and param.
DECISIONS = [
    ("allowed", {"use": "metadata_limits"}, {}, 200, None, None),
    ("changed", {"use": "max_tool_calls", "max": 1}, {"max_tool_calls": 9}, 200, None, None),
    ("refused", {"use": "metadata_limits", "max_pairs": 0}, {"metadata": {"a": "b"}}, 400, "metadata_limits.too_many_pairs", "metadata"),
    ("refused", {"use": "max_tool_calls", "max": 1}, {"max_tool_calls": 0}, 400, "max_tool_calls.below_minimum", "max_tool_calls"),
    ("reported", {"use": "safety_identifier", "require": True, "mode": "report"}, {}, 200, "safety_identifier.required", "safety_identifier"),
    ("reported", {"use": "max_tool_calls", "max": 1, "mode": "report"}, {"max_tool_calls": 9}, 200, "max_tool_calls.changed", None),
]  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS, ids=lambda case: f"{case[0]}-{case[4]}")
async def test_each_line_has_the_decision_and_its_request(
    http, upstream: FakeUpstream, tmp_path: Path, case: Sequence[Any]
):
    """It has the policy and its version, the decision, its code and param, the caller, the model and the request id."""
    decision, policy, fields, status, code, param = case
    path = tmp_path / "audit.jsonl"
    caller = {"name": "anna", "team": "search", "key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}  # fmt: skip
    tables = tables_for(upstream, policy=[policy], caller=[caller], audit={"path": str(path)}, server={"port": 0})
    async with (
        running(build(tables)) as gateway,
        http.post(f"{gateway}/v1/responses", json=REQUEST | fields, headers={"Authorization": "Bearer key"}) as answer,
    ):
        request_id = answer.headers["x-request-id"]
        await answer.read()
    (line,) = decisions_in(path)

    assert answer.status == status
    assert {name: line[name] for name in line if name not in ("time", "version", "previous", "hash")} == {
        "policy": policy["use"],
        "decision": decision,
        "code": code,
        "param": param,
        "caller": "anna",
        "model": "gpt-5.6",
        "request_id": request_id,
        "seq": 1,
    }
    assert len(line["version"]) == 12


@pytest.mark.parametrize(("mode", "decision"), [("enforce", "stopped"), ("report", "reported")])
async def test_a_stopped_reply_is_a_decision_too(
    http, upstream: FakeUpstream, tmp_path: Path, mode: str, decision: str
):
    """The request and its reply each have a line with the same request id."""
    path = tmp_path / "audit.jsonl"
    policy = {"use": "max_tool_calls", "max": 1, "mode": mode}
    upstream.answer = streaming(OVER_BUDGET)
    request = {"max_tool_calls": 1, "stream": True, "tools": [{"type": "mcp", "server_label": "s"}]}
    await post_all(http, tables_for(upstream, policy=[policy], audit={"path": str(path)}), request)
    written = decisions_in(path)

    assert [(line["decision"], line["code"]) for line in written] == [
        ("allowed", None),
        (decision, "max_tool_calls.exceeded"),
    ]
    assert len({(line["request_id"], line["version"]) for line in written}) == 1


async def test_no_prompt_is_in_the_file(http, upstream: FakeUpstream, tmp_path: Path):
    """It has no prompt of calls that pass or are refused."""
    path = tmp_path / "audit.jsonl"
    requests = (
        {"input": "my secret", "instructions": "my secret"},
        {"input": "my secret", "metadata": {"a": "my secret" * 100}},
    )
    await post_all(http, tables_for(upstream, audit={"path": str(path)}), *requests)

    assert path.read_bytes() != b""
    assert b"secret" not in path.read_bytes()


async def test_a_long_model_name_is_cut(http, upstream: FakeUpstream, tmp_path: Path):
    """A caller must not control the length of a line."""
    path = tmp_path / "audit.jsonl"
    await post_all(http, tables_for(upstream, audit={"path": str(path)}), {"model": "m" * 256})

    assert {len(line["model"]) for line in decisions_in(path)} == {128}


async def test_the_version_changes_with_the_settings(http, upstream: FakeUpstream, tmp_path: Path):
    """Equal settings have the same version and different settings another; an explicit default equals an implicit one."""
    versions = []
    for number, settings in enumerate(
        ({"max": 8}, {"max": 8, "count_unknown": True}, {"max": 9}, {"max": 8, "default": 4})
    ):
        path = tmp_path / f"{number}.jsonl"
        policy = [{"use": "max_tool_calls", **settings}]
        await post_all(http, tables_for(upstream, policy=policy, audit={"path": str(path)}), {})
        versions.append(decisions_in(path)[0]["version"])

    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


async def test_two_gateways_do_not_write_to_one_file(
    start_gateway: StartGateway, upstream: FakeUpstream, tmp_path: Path
):
    """The second would break the first one's chain, so it does not start."""
    tables = tables_for(upstream, audit={"path": str(tmp_path / "audit.jsonl")})
    await start_gateway(tables)

    with pytest.raises(OSError, match="another gateway writes to this audit file"):
        await start_gateway(tables)


@pytest.mark.parametrize("key", [None, b"k" * 32])
def test_the_hash_of_a_line_is_that_of_its_fields_in_order(key: bytes | None):
    """The number and the hash of the line before are among them: another program can compute it."""
    texts = [{"time": "t", "model": 'a "b" ä\\'}, {"time": "u"}]
    linked = Chain(key, Head(4, "a" * 64)).link(map(orjson.dumps, texts))
    expected, previous = [], "a" * 64
    for seq, text in enumerate(texts, 5):
        fields = {**text, "seq": seq, "previous": previous}
        encoded = orjson.dumps(fields)
        previous = hmac.new(key, encoded, "sha256").hexdigest() if key else hashlib.sha256(encoded).hexdigest()
        expected.append((orjson.dumps({**fields, "hash": previous}), Head(seq, previous)))

    assert linked == expected
