"""Figures of all rounds -> one Markdown table: medians, and how they were judged round by round, beside the aims."""

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.local_rows import Row, Taken

HEADINGS = ("work", "lane", "median", "lowest and highest", "ratio", "aim")


def table(measured: Sequence[tuple[Row, Sequence[tuple[Taken, Taken]]]]) -> Iterator[str]:
    """The lines of the table; for each row its rounds, of both lanes each."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---|---|---:|---:|---:|---:|"
    for row, rounds in measured:
        for side, lane in enumerate(row.lanes):
            taken = [pair[side] for pair in rounds]
            figures = row.unit.format(*(median(figure) for figure in zip(*taken, strict=True)))
            first = sorted(each[0] for each in taken)
            spread = f"{first[0]:,.4g} {first[-1]:,.4g}"
            judged = (_judged(row, rounds), row.aim) if side else ("", "")
            yield f"| {' | '.join(['' if side else row.told, lane, figures, spread, *judged])} |"


def _judged(row: Row, rounds: Sequence[tuple[Taken, Taken]]) -> str:
    """The last lane against the yardstick in the same round: what disturbs one disturbs the other."""
    pairs = [(yardstick[0], own[0]) for yardstick, own in rounds]
    ratio = f"**{median(own / yardstick for yardstick, own in pairs):.2f}**"
    match row.judged:
        case "rate":
            by_cpu = median(yardstick[1] / own[1] for yardstick, own in rounds)
            return f"{ratio}, by CPU {by_cpu:.2f}"
        case "ratio":
            return ratio
        case "difference":
            return f"**{median(own - yardstick for yardstick, own in pairs):+.1f} ms**"
        case "alone":
            return f"**{median(own for _, own in pairs):.1f} ms**"
