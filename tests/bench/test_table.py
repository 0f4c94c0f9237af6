"""The table: medians, ratios round by round, and the lines below it. Rivals: their rows, and how they are started."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.load import Measurement
from tests.bench.processes import start_server
from tests.bench.servers import rival
from tests.bench.table import HEADINGS, compare_dialects, describe_memory, render_table
from tests.bench.workloads import WORKLOADS, build_burst, compare_with


def rounds(*cpu_ms):
    """Rounds of 100 requests in a second, each request with this processor time."""
    return [Measurement(1.0, 100, 0, each / 10, [0.001, 0.002, 0.003]) for each in cpu_ms]


def test_a_row_shows_medians_and_ratios_against_the_baseline():
    bare, headgate = rounds(1, 2, 9), rounds(4, 4, 4)
    lines = list(render_table([(build_burst("compact"), (bare, headgate))]))
    first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])

    assert lines[0] == f"| {' | '.join(HEADINGS)} |"
    assert first[1:] == ["bare", "100 requests", "2.000", "2.0", "2.0", "0.20", "1", "1"]
    assert second == ["", "headgate", "100 requests", "4.000", "2.0", "2.0", "0.40", "**1.00**", "0.50"]


def test_the_second_server_may_get_another_body():
    """One row compares two forms of a call at one server."""
    (ownership,) = (workload for workload in WORKLOADS if workload.second_body)
    (plain,) = (workload for workload in WORKLOADS if workload.name == "json")

    assert [b'"store":%b' % value in ownership.for_server(n).body for n, value in enumerate((b"false", b"true"))] == [
        True,
        True,
    ]
    assert plain.for_server(1) is plain


def test_a_server_without_a_cache_is_not_asked_what_it_did():
    """The other one of the row is: a miss that became a hit would look fast."""
    compared = [workload for workload in WORKLOADS if not workload.first_has_cache]

    assert [[workload.for_server(n).cache_status for n in (0, 1)] for workload in compared] == [
        [b"", b"fwd=uri-miss"],
    ] * 2


def test_the_costliest_dialect_is_compared_with_the_cheapest_by_the_cpu_of_headgate():
    measured = [
        (build_burst("compact"), (rounds(9), rounds(1))),
        (build_burst("json.dumps"), (rounds(1), rounds(4))),
        (build_burst("CRLF"), (rounds(1), rounds(2))),
    ]

    assert compare_dialects(measured) == (
        "The costliest dialect costs headgate **4.00** times the CPU of the cheapest: "
        "json.dumps 4.000 ms a request, compact 1.000 ms."
    )


def test_one_dialect_alone_is_not_compared():
    assert compare_dialects([(build_burst("compact"), (rounds(1), rounds(1)))]) == ""


def test_the_memory_of_a_stream_is_that_of_the_row_with_most_streams():
    """It is the most of all rounds; rows without streams say nothing."""
    few, many = (next(each for each in WORKLOADS if each.name == name) for name in ("paced", "many"))
    bare, headgate = rounds(1), [replace(rounds(1)[0], grown_kib=kib) for kib in (20, 31.4)]

    assert describe_memory([(few, (headgate, bare)), (many, (bare, headgate))]) == (
        "Memory of one of 1,000 streams at once: bare 0 KiB, headgate 31 KiB."
    )
    assert describe_memory([(build_burst("compact"), (bare, headgate))]) == ""


def test_a_rival_is_compared_in_the_rows_that_any_gateway_can_serve():
    """WebSocket mode and the cache are Headgate's own."""
    compared = {each.name: each for workload in WORKLOADS for each in compare_with(["other"], workload)}

    assert set(compared) == {"json", "different", "large", "burst", "paced", "many"}
    assert compared["json"].servers == ("bare", "other")
    assert compared["json"].label == "JSON, other"


async def test_a_rival_listens_on_the_port_that_it_is_given(tmp_path: Path):
    start = rival(f"{sys.executable} -m http.server --bind 127.0.0.1 {{port}}")
    command = start(1, tmp_path)
    async with start_server("other", command, tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()

    assert server.port == command.port
    assert answer.startswith(b"HTTP/1.0 200 ")


async def test_a_rival_that_ends_is_reported_with_what_it_said(tmp_path: Path):
    start = rival(f"{sys.executable} -c 'import sys; sys.exit(\"no {{upstream}}\")'")
    with pytest.raises(RuntimeError, match="other does not start: no 80"):
        async with start_server("other", start(80, tmp_path), tmp_path):
            pass
