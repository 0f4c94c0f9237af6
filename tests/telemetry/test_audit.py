"""Every decision leaves a line, and nobody changes a line unseen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.app import running
from proxy.telemetry.audit import START, Audit, AuditTable, Decision, first_altered
from proxy.config.build import build
from tests.conftest import StartGate, tables_for
from tests.logs import isolated_logs
from tests.room import disk_full_at
from tests.upstream import CANONICAL, FakeUpstream, streaming

ASKED = {"model": "gpt-5.6", "input": "Hi"}
MADE = Decision("metadata_limits", "0123456789ab", "allowed", None, None, "anna", "m")


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Logs go where this test can see them, whoever sent them elsewhere before."""
    with isolated_logs():
        yield


def written(path: Path, *models: str) -> list[bytes]:
    """The lines of an audit file with one decision for each model, their ends included."""
    audit = Audit(AuditTable(path=path))
    audit.open()
    for model in models:
        audit.write(Decision("max_tool_calls", "0123456789ab", "changed", None, None, "anna", model))
    audit.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """Five lines as they are written; the caller of one of them chose a name that JSON must escape."""
    return written(tmp_path / "five.jsonl", "one", "two", "thr\x1fee", "vier\u00e4", "five")


def told_in(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def ask(http, gate: str, **fields: Any) -> int:
    async with http.post(f"{gate}/v1/responses", json=ASKED | fields) as answer:
        await answer.read()
        return answer.status


def test_what_was_written_is_whole(lines: list[bytes], tmp_path: Path):
    """Each line holds the hash of the one before it, the first one zeros."""
    told = [orjson.loads(line) for line in lines]

    assert first_altered(lines) == (5, None)
    assert [line["previous"] for line in told] == [START, *(line["hash"] for line in told[:-1])]
    assert first_altered([]) == (0, None)


@pytest.mark.parametrize("mask", [0x01, 0x07, 0x20, 0x2A, 0x80, 0xFF])
def test_no_byte_can_be_changed_unseen(lines: list[bytes], mask: int):
    """Whichever byte is flipped, be it a line's end or the case of an escape, its line is named."""
    whole = b"".join(lines)
    unseen = []
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= mask
        number = whole[:place].count(b"\n") + 1
        if first_altered(bytes(altered).splitlines(keepends=True)) != (number - 1, number):
            unseen.append(place)

    assert unseen == []


@pytest.mark.parametrize("dropped", [0, 1, 3])
def test_a_dropped_line_is_seen_where_it_stood(lines: list[bytes], dropped: int):
    """The line that took its place does not follow the one before."""
    assert first_altered(lines[:dropped] + lines[dropped + 1 :]) == (dropped, dropped + 1)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 4), (3, 4)])
def test_swapped_lines_are_seen_at_the_first_of_them(lines: list[bytes], one: int, other: int):
    """Order is part of what was written."""
    lines[one], lines[other] = lines[other], lines[one]

    assert first_altered(lines) == (one, one + 1)


@pytest.mark.parametrize("inserted", [b"\n", b"{}\n", b"[]\n", b"null\n", b"7\n", b"not JSON\n", b"\xff\n"])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_an_inserted_line_is_seen(lines: list[bytes], inserted: bytes, place: int):
    """An empty one too, and one that is no JSON."""
    assert first_altered([*lines[:place], inserted, *lines[place:]]) == (place, place + 1)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_line_given_twice_is_seen(lines: list[bytes], place: int):
    """A true line in the wrong place is as wrong as any other."""
    assert first_altered([*lines[: place + 1], lines[place], *lines[place + 1 :]]) == (place + 1, place + 2)


def test_a_forged_line_with_a_hash_of_its_own_is_seen_at_the_next(lines: list[bytes], tmp_path: Path):
    """Who can compute hashes can write one line that fits, and none that the old next one follows."""
    forged = tmp_path / "forged.jsonl"
    forged.write_bytes(b"".join(lines[:2]))
    fitting = written(forged, "forged")[2]

    assert first_altered([*lines[:2], fitting, *lines[3:]]) == (3, 4)


def test_what_says_the_same_in_other_bytes_is_altered(lines: list[bytes]):
    """Another order of names, a space, a name given twice: JSON forgives it, the chain does not."""
    told = orjson.loads(lines[1])
    variants = [
        orjson.dumps(dict(reversed(told.items()))) + b"\n",
        lines[1].replace(b'"model":', b'"model": '),
        lines[1].replace(b'"model":', b'"model":"other","model":'),
    ]

    assert [first_altered([lines[0], variant, *lines[2:]]) for variant in variants] == [(1, 2)] * 3


def test_a_chain_that_was_cut_short_is_whole_as_far_as_it_goes(lines: list[bytes]):
    """Only somebody who kept the last hash elsewhere can tell."""
    assert first_altered(lines[:3]) == (3, None)


async def test_a_restarted_gate_goes_on_with_the_chain(http, upstream: FakeUpstream, tmp_path: Path):
    """Three gates one after the other write one chain."""
    path = tmp_path / "audit.jsonl"
    tables = tables_for(upstream, audit={"path": str(path)}, server={"port": 0, "drain_s": 0})
    for _ in range(3):
        async with running(build(tables)) as gate:
            await ask(http, gate)

    with path.open("rb") as kept:
        assert first_altered(kept) == (9, None)


@pytest.mark.parametrize("chars", [60_000, 65_400, 70_000, 300_000])
def test_the_chain_goes_on_behind_a_line_of_any_length(tmp_path: Path, chars: int):
    """A caller that asks for a model with an endless name does not keep the gate from starting."""
    path = tmp_path / "audit.jsonl"
    written(path, "short")
    written(path, "m" * chars)

    assert first_altered(written(path, "short")) == (3, None)


@pytest.mark.parametrize(
    "last",
    [b"{", b"{}\n", b"[]\n", b'"hash"\n', b"null\n", b"\xff\n", b"\n", b'{"hash":"00"}', b'{"a":1}\n'],
)
def test_a_gate_does_not_write_behind_what_it_did_not_write(lines: list[bytes], tmp_path: Path, last: bytes):
    """A last line that is torn or a stranger's is for a person to look at; the message says what to do."""
    path = tmp_path / "five.jsonl"
    path.write_bytes(b"".join(lines) + last)

    with pytest.raises(ValueError, match="last line of the audit file is not whole, or not one of ours") as caught:
        Audit(AuditTable(path=path)).open()
    assert str(caught.value).startswith(f"{path}: ")
    assert path.read_bytes() == b"".join(lines) + last


def test_a_file_that_cannot_be_written_keeps_the_gate_from_starting(tmp_path: Path):
    """Before the first call, not at it."""
    with pytest.raises(IsADirectoryError):
        Audit(AuditTable(path=tmp_path)).open()
    with pytest.raises(FileNotFoundError):
        Audit(AuditTable(path=tmp_path / "none" / "audit.jsonl")).open()


def test_a_new_file_is_its_owners_alone(tmp_path: Path):
    """It tells who asked what; a file that is there keeps the mode that somebody gave it."""
    path = tmp_path / "audit.jsonl"
    written(path, "one")
    made = path.stat().st_mode & 0o777
    path.chmod(0o640)
    written(path, "two")

    assert (made, path.stat().st_mode & 0o777) == (0o600, 0o640)


def test_who_was_never_opened_writes_nothing(tmp_path: Path):
    """Nor does closing it hurt."""
    audit = Audit(AuditTable(path=tmp_path / "audit.jsonl"))
    audit.write(MADE)
    audit.close()

    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_costs_lines_and_no_call(start_gate: StartGate, http, upstream: FakeUpstream, logged):
    """/dev/full takes nothing; each line that is lost is told."""
    gate = await start_gate(tables_for(upstream, audit={"path": "/dev/full"}))
    statuses = [await ask(http, gate) for _ in range(3)]
    lost = [line for line in logged if line["event"] == "audit.failed"]

    assert statuses == [200, 200, 200]
    assert {line["error"] for line in lost} == {"No space left on device"}
    assert len(lost) == 9


def test_no_half_line_is_left_when_the_room_ends_within_it(lines: list[bytes], tmp_path: Path, logged):
    """The chain stays whole, and goes on as soon as there is room again."""
    path = tmp_path / "five.jsonl"
    size = path.stat().st_size
    audit = Audit(AuditTable(path=path))
    audit.open()
    for more in (1, 100, 300):
        with disk_full_at(size + more):
            audit.write(MADE)

        assert path.stat().st_size == size
    audit.write(MADE)
    audit.close()

    assert [line["event"] for line in logged] == ["audit.failed"] * 3
    assert first_altered(path.read_bytes().splitlines(keepends=True)) == (6, None)


async def test_calls_that_pass_unchanged_need_not_be_written(
    start_gate: StartGate, http, upstream: FakeUpstream, tmp_path
):
    """`allowed = false` leaves what somebody may ask about."""
    path = tmp_path / "audit.jsonl"
    gate = await start_gate(tables_for(upstream, audit={"path": str(path), "allowed": False}))
    await ask(http, gate, max_tool_calls=8)
    await ask(http, gate)
    await ask(http, gate, metadata=7)

    assert [line["decision"] for line in told_in(path)] == ["changed", "refused"]


COUNTED = [{"type": "mcp_call", "id": f"mcp_{n}", "server_label": "s", "name": "f", "arguments": "{}"} for n in (0, 1)]
OVERSPENT = CANONICAL[: CANONICAL.index(b"event: response.output_item.added")] + b"".join(
    b"event: response.output_item.added\ndata: %b\n\n"
    % orjson.dumps(
        {"type": "response.output_item.added", "sequence_number": 2 + n, "output_index": n, "item": COUNTED[n]}
    )
    for n in (0, 1)
)
# What is asked of which policies, and the decision on it, with its code and param.
DECISIONS = [
    ("allowed", {"use": "metadata_limits"}, {}, 200, None, None),
    ("changed", {"use": "max_tool_calls", "max": 1}, {"max_tool_calls": 9}, 200, None, None),
    (
        "refused",
        {"use": "metadata_limits", "max_pairs": 0},
        {"metadata": {"a": "b"}},
        400,
        "metadata_limits.too_many_pairs",
        "metadata",
    ),
    (
        "refused",
        {"use": "max_tool_calls", "max": 1},
        {"max_tool_calls": 0},
        400,
        "max_tool_calls.below_minimum",
        "max_tool_calls",
    ),
    (
        "reported",
        {"use": "safety_identifier", "require": True, "mode": "report"},
        {},
        200,
        "safety_identifier.required",
        "safety_identifier",
    ),
    (
        "reported",
        {"use": "max_tool_calls", "max": 1, "mode": "report"},
        {"max_tool_calls": 9},
        200,
        "max_tool_calls.changed",
        None,
    ),
]


@pytest.mark.parametrize("case", DECISIONS, ids=lambda case: f"{case[0]}-{case[4]}")
async def test_each_decision_says_who_asked_and_what_for(start_gate: StartGate, http, upstream, tmp_path: Path, case):
    """The policy and its settings, the decision, its code and param, the caller, the model and the request."""
    decision, policy, asked, status, code, param = case
    path = tmp_path / "audit.jsonl"
    caller = {"name": "anna", "team": "search", "key_sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}  # fmt: skip
    gate = await start_gate(tables_for(upstream, policy=[policy], caller=[caller], audit={"path": str(path)}))
    async with http.post(f"{gate}/v1/responses", json=ASKED | asked, headers={"Authorization": "Bearer key"}) as answer:
        request_id = answer.headers["x-request-id"]
        await answer.read()
    (line,) = told_in(path)

    assert answer.status == status
    assert {name: line[name] for name in line if name not in ("time", "version", "previous", "hash")} == {
        "policy": policy["use"],
        "decision": decision,
        "code": code,
        "param": param,
        "caller": "anna",
        "model": "gpt-5.6",
        "request_id": request_id,
    }
    assert len(line["version"]) == 12


@pytest.mark.parametrize(("mode", "decision"), [("enforce", "stopped"), ("report", "reported")])
async def test_a_reply_that_is_stopped_is_a_decision_too(
    start_gate: StartGate, http, upstream: FakeUpstream, tmp_path: Path, mode: str, decision: str
):
    """One line for the request, one for its reply, both of the same request."""
    path = tmp_path / "audit.jsonl"
    policy = {"use": "max_tool_calls", "max": 1, "mode": mode}
    gate = await start_gate(tables_for(upstream, policy=[policy], audit={"path": str(path)}))
    upstream.answer = streaming(OVERSPENT)
    await ask(http, gate, max_tool_calls=1, stream=True, tools=[{"type": "mcp", "server_label": "s"}])
    told = told_in(path)

    assert [(line["decision"], line["code"]) for line in told] == [
        ("allowed", None),
        (decision, "max_tool_calls.exceeded"),
    ]
    assert len({(line["request_id"], line["version"]) for line in told}) == 1


async def test_no_prompt_stands_in_the_file(start_gate: StartGate, http, upstream: FakeUpstream, tmp_path: Path):
    """Neither of a call that passes nor of one that is refused."""
    path = tmp_path / "audit.jsonl"
    gate = await start_gate(tables_for(upstream, audit={"path": str(path)}))
    await ask(http, gate, input="my secret", instructions="my secret")
    await ask(http, gate, input="my secret", metadata={"a": "my secret" * 100})

    assert b"secret" not in path.read_bytes()


async def test_the_version_changes_with_the_settings(start_gate: StartGate, http, upstream: FakeUpstream, tmp_path):
    """Equal settings are one version, others are another; a default that is spelt out is the default."""
    versions = []
    for number, settings in enumerate(
        ({"max": 8}, {"max": 8, "count_unknown": True}, {"max": 9}, {"max": 8, "default": 4})
    ):
        path = tmp_path / f"{number}.jsonl"
        policy = [{"use": "max_tool_calls", **settings}]
        await ask(http, await start_gate(tables_for(upstream, policy=policy, audit={"path": str(path)})))
        versions.append(told_in(path)[0]["version"])

    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


async def test_two_gates_do_not_write_to_one_file(start_gate: StartGate, upstream: FakeUpstream, tmp_path: Path):
    """The second would break the first one's chain, so it does not start."""
    tables = tables_for(upstream, audit={"path": str(tmp_path / "audit.jsonl")})
    await start_gate(tables)

    with pytest.raises(OSError, match="another gate writes to this audit file"):
        await start_gate(tables)
