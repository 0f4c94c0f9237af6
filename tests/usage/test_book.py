"""What a process counts, and what the next one in its place finds of it."""

import os
from collections.abc import Iterator
from itertools import count

import pytest

from proxy.telemetry.record import RequestRecord
from proxy.usage.book import MAX_ENDED, UsageBook
from proxy.usage.columns import COLUMNS, Labels
from proxy.usage.spool import Batch, Spool, open_files
from proxy.usage.table import UsageTable
from proxy.wire.call import Call
from tests.conftest import StartGateway, tables_for
from tests.raw import until
from tests.upstream import FakeUpstream

HOUR_S = 3600


def call(team: str = "t", caller: str = "c", model: str = "m", **fields: object) -> RequestRecord:
    return RequestRecord(**{"method": "POST", "path": "/v1/responses", "status": 200, "team": team, "caller": caller,
                            "model": model, "backend": "b", "input_tokens": 5, "output_tokens": 7} | fields)  # fmt: skip


def make_book(spool: Spool | None = None, now: list[float] | None = None, **settings: object) -> UsageBook:
    return UsageBook(UsageTable(**settings), spool, (lambda: 0.0) if now is None else lambda: now[0])


def rows_of(*batches: Batch | None) -> dict[tuple[str, Labels], dict[str, int]]:
    """Return what is not 0 in the rows of batches, by their hours and labels."""
    found: dict[tuple[str, Labels], dict[str, int]] = {}
    for batch in batches:
        for (hour, name), amounts in ({} if batch is None else batch.sums).items():
            sums = found.setdefault((hour, Labels.of(name)), {})
            for column, amount in zip(COLUMNS, amounts, strict=True):
                if amount:
                    sums[column] = sums.get(column, 0) + amount
    return found


def total(*batches: Batch | None, column: str = "calls") -> int:
    return sum(row.get(column, 0) for row in rows_of(*batches).values())


def test_calls_are_added_up_by_the_hour_of_their_end():
    """Each row has its labels; a cut begins anew."""
    now = [10.0 * HOUR_S]
    book = make_book(now=now)
    for model in ("m", "m", "n"):
        book.count(call(model=model))
    now[0] += HOUR_S
    book.count(call(key_id="key_1"))
    batch = book.cut()
    one = {"calls": 1, "input_tokens": 5, "output_tokens": 7}

    assert rows_of(batch) == {
        ("1970-01-01T10", Labels("t", "c", "", "m", "b")): {name: 2 * n for name, n in one.items()},
        ("1970-01-01T10", Labels("t", "c", "", "n", "b")): one,
        ("1970-01-01T11", Labels("t", "c", "key_1", "m", "b")): one,
    }
    assert book.cut() is None


async def test_calls_are_added_up_with_the_log_lines_of_their_requests(
    http, start_gateway: StartGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """Their records are kept for no longer, whatever an upstream has sent; what is asked for has all of them."""
    waiting: list[int] = []
    add_up = UsageBook.add_up

    def count_waiting(book: UsageBook) -> None:
        waiting.append(len(book._ended))
        add_up(book)

    monkeypatch.setattr(UsageBook, "add_up", count_waiting)
    gateway = await start_gateway(tables_for(upstream, usage={"flush_s": 300}))
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "input": "Hi"}) as answer:
        await answer.read()
    await until(lambda: sum(waiting) == 1)


def test_no_more_calls_wait_than_a_limit():
    """Also where there are no log lines."""
    book, sizes = make_book(), []
    for _ in range(3 * MAX_ENDED):
        book.count(call())
        sizes.append(len(book._ended))

    assert (max(sizes), sizes[-1]) == (MAX_ENDED - 1, 0)
    assert total(book.cut()) == 3 * MAX_ENDED


@pytest.mark.parametrize(
    "fields",
    [{"team": None}, {"method": "GET"}, {"path": "/v1/models"}, {"finish_reason": "queued"}],
)
def test_what_calls_no_model_is_not_counted(fields: dict[str, object]):
    """A background response is counted at its end, not when it is queued."""
    book = make_book()
    book.count(call(**fields))

    assert book.cut() is None


@pytest.mark.parametrize(
    ("tags", "sent", "found"),
    [
        ("project=x,stage=a=b", (("project", "y"), ("user", "u")), (("project", "x"), ("user", "u"))),
        (None, (("project", "y"),), (("project", "y"),)),
        ("stage=a", (), ()),
    ],
)
def test_a_tag_of_the_key_comes_before_metadata(tags: str | None, sent: tuple, found: tuple):
    """The operator has given it; the caller may write anything."""
    book = make_book(metadata=("project", "user"))
    book.count(call(tags=tags, usage_metadata=sent))

    assert [labels.metadata for _, labels in rows_of(book.cut())] == [found]


def test_rows_are_limited_and_teams_leave_room_for_others():
    """A team that invents models has one row for the rest of them, and others keep theirs; nothing is lost."""
    book = make_book(max_rows=8)
    for number in range(1000):
        book.count(call(model=f"m{number}"))
    for team in ("u", "v"):
        book.count(call(team=team))
    for number in range(1000):
        book.count(call(caller=f"c{number}"))
    rows = rows_of(book.cut())
    models = {team: {labels.model for _, labels in rows if labels.team == team} for team in "tuv"}

    assert len(rows) <= 2 * 8 + 1
    assert models == {"t": {"m0", "m1", "m2", "m3", "other"}, "u": {"m"}, "v": {"m"}}
    assert sum(row["calls"] for row in rows.values()) == 2002
    assert "" in {labels.caller for _, labels in rows}
    assert "other" not in {labels.caller for _, labels in rows}  # a caller may have that name, and sees its own rows


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """The files of a worker's place."""
    opened = open_files()
    yield opened
    for file in opened:
        os.close(file)


def begin(book: UsageBook, size_bytes: int = 400, **fields: object) -> RequestRecord:
    record = call(**fields)
    book.begin(record, Call({}).with_encoded(bytes(size_bytes)))
    return record


LOST = {"calls": 1, "interrupted": 1, "sent": 1, "estimated_input_tokens": 100}


@pytest.mark.parametrize("cuts", ["", "c", "cs", "cscs", "csc"])
def test_the_next_process_finds_what_was_not_written(files: tuple[int, int], cuts: str):
    """What was settled is gone, what was cut may be written again with its number, what was in flight is interrupted."""
    book = make_book(Spool(files))
    source, numbers, written = "", count(1), list[Batch]()
    running = begin(book)
    for step in cuts:
        if step == "c":
            book.count(begin(book))
            batch = book.cut()
            assert batch is not None
            source = batch.source
            written.append(batch)
            assert batch.number == next(numbers)
        else:
            book.settle()
            written.clear()
    book.count(begin(book))
    begin(book)
    found = [*Spool(files).left()]

    assert [(batch.number, source in ("", batch.source)) for batch in found] == [
        (1 + cuts.count("c") + number, True) for number in range(-len(written), 1)
    ]
    assert total(*found) == len(written) + 3
    assert total(*found, column="interrupted") == 2
    assert total(*found, column="estimated_input_tokens") == 200
    assert running.sent == 1


def test_a_place_whose_processes_die_again_and_again_loses_nothing(files: tuple[int, int]):
    """Each of them finds what all before it have left, as long as nothing could be written."""
    found = []
    for number in range(5):
        book = make_book(Spool(files))
        found.append(total(*book.left))
        book.count(begin(book))
        begin(book)
        if number == 2:
            book.cut()  # to the other file, in which there is nothing
    last = [*Spool(files).left()]

    assert found == [0, 2, 4, 6, 8]
    assert total(*last) == 10
    assert len({(batch.source, batch.number) for batch in last}) == len(last)


def test_a_call_that_is_sent_again_is_one_call(files: tuple[int, int]):
    """Its attempts are counted."""
    book = make_book(Spool(files))
    record = begin(book)
    book.begin(record, Call({}).with_encoded(bytes(400)))

    assert [*rows_of(*Spool(files).left()).values()] == [LOST | {"sent": 2}]


def test_a_line_that_was_cut_off_is_not_read(files: tuple[int, int]):
    """What is before it is."""
    book = make_book(Spool(files))
    book.count(begin(book))
    os.pwrite(files[0], b'["e",9,"1970', os.fstat(files[0]).st_size)

    assert total(*Spool(files).left()) == 1
