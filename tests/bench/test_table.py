"""The table: medians, ratios round by round, and the line that compares the dialects."""

from tests.bench.load import Measurement
from tests.bench.table import HEADINGS, compare_dialects, render_table
from tests.bench.workloads import build_burst


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
