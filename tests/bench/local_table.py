"""Renders the measurements of a local model as a Markdown table: medians, and results computed round by round."""

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.local_rows import LocalRow, Values

HEADINGS = ("work", "side", "median", "lowest and highest", "ratio", "aim")


def render_local_table(measured: Sequence[tuple[LocalRow, Sequence[tuple[Values, Values]]]]) -> Iterator[str]:
    """Yield the lines of the table, given for each row the values of both sides in every round."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---|---|---:|---:|---:|---:|"
    for row, rounds in measured:
        for index, side in enumerate(row.sides):
            values = [pair[index] for pair in rounds]
            medians = row.unit.format(*(median(value) for value in zip(*values, strict=True)))
            first = sorted(each[0] for each in values)
            spread = f"{first[0]:,.4g} {first[-1]:,.4g}"
            result = (_result(row, rounds), row.aim) if index else ("", "")
            yield f"| {' | '.join(['' if index else row.label, side, medians, spread, *result])} |"


def _result(row: LocalRow, rounds: Sequence[tuple[Values, Values]]) -> str:
    """Compare the last side with the baseline in the same round, because a disturbance affects both."""
    pairs = [(baseline[0], own[0]) for baseline, own in rounds]
    ratio = f"**{median(own / baseline for baseline, own in pairs):.2f}**"
    match row.result:
        case "rate":
            by_cpu = median(baseline[1] / own[1] for baseline, own in rounds)
            return f"{ratio}, by CPU {by_cpu:.2f}"
        case "ratio":
            return ratio
        case "difference":
            return f"**{median(own - baseline for baseline, own in pairs):+.1f} ms**"
        case "alone":
            return f"**{median(own for _, own in pairs):.1f} ms**"
