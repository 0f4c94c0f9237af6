"""Figures of all rounds -> one Markdown table: medians, and ratios taken round by round."""

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.load import Figures
from tests.bench.works import Work

HEADINGS = ("work", "server", "per second", "p50 ms", "p99 ms", "CPU s per 1,000", "of a core", "ratio", "ratio by CPU")


def table(measured: Sequence[tuple[Work, Sequence[Sequence[Figures]]]]) -> Iterator[str]:
    """The lines of the table; for each work the rounds of each of its servers."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|---|---{'|---:' * (len(HEADINGS) - 2)}|"
    for work, lanes in measured:
        yardstick = lanes[0]
        for name, rounds in zip(work.servers, lanes, strict=True):
            cells = [work.told if rounds is yardstick else "", name, *_figures(work, rounds)]
            cells += ["1", "1"] if rounds is yardstick else _ratios(work, rounds, yardstick)
            yield f"| {' | '.join(cells)} |"


def _figures(work: Work, rounds: Sequence[Figures]) -> list[str]:
    unit = "events" if work.pace_s else "requests"
    return [
        f"{median(_rate(work, figures) for figures in rounds):,.0f} {unit}",
        f"{median(_percentile_ms(figures, 0.50) for figures in rounds):.1f}",
        f"{median(_percentile_ms(figures, 0.99) for figures in rounds):.1f}",
        f"{median(_cost(work, figures) for figures in rounds):.3f}",
        f"{median(figures.cpu_s / figures.seconds for figures in rounds):.2f}",
    ]


def _ratios(work: Work, rounds: Sequence[Figures], yardstick: Sequence[Figures]) -> list[str]:
    """Each round against the yardstick's same round: what disturbs one disturbs the other."""
    pairs = list(zip(rounds, yardstick, strict=True))
    by_rate = median(_rate(work, own) / _rate(work, other) for own, other in pairs)
    by_cpu = median(_cost(work, other) / _cost(work, own) for own, other in pairs)
    return [f"**{by_rate:.2f}**", f"{by_cpu:.2f}"]


def _done(work: Work, figures: Figures) -> int:
    return max(1, figures.events if work.pace_s else figures.answers)


def _rate(work: Work, figures: Figures) -> float:
    return _done(work, figures) / figures.seconds


def _cost(work: Work, figures: Figures) -> float:
    """Processor seconds for 1,000 requests, or events."""
    return 1000 * max(figures.cpu_s, 0.01) / _done(work, figures)


def _percentile_ms(figures: Figures, share: float) -> float:
    latencies = figures.latencies_s
    return 1000 * latencies[int(share * (len(latencies) - 1))] if latencies else float("nan")
