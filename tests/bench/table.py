"""Renders the measurements as a Markdown table: medians over the rounds, and ratios computed round by round."""

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.load import Measurement
from tests.bench.workloads import Workload

HEADINGS = ("work", "server", "per second", "CPU ms each", "p50 ms", "p99 ms", "of a core", "ratio", "ratio by CPU")

Measured = Sequence[tuple[Workload, Sequence[Sequence[Measurement]]]]  # for each workload, the rounds of its servers


def render_table(measured: Measured) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|---|---{'|---:' * (len(HEADINGS) - 2)}|"
    for workload, servers in measured:
        baseline = servers[0]
        for name, rounds in zip(workload.servers, servers, strict=True):
            cells = [workload.label if rounds is baseline else "", name, *_figures(workload, rounds)]
            cells += ["1", "1"] if rounds is baseline else _ratios(workload, rounds, baseline)
            yield f"| {' | '.join(cells)} |"


def compare_dialects(measured: Measured) -> str:
    """Return one line with Headgate's cost of the costliest dialect against the cheapest; "" for fewer than two."""
    costs = {
        workload.dialect: median(_cpu_ms(workload, each) for each in servers[-1])
        for workload, servers in measured
        if workload.dialect
    }
    if len(costs) < 2:
        return ""
    cheapest, costliest = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
    return (
        f"The costliest dialect costs headgate **{costs[costliest] / costs[cheapest]:.2f}** times the CPU of the cheapest: "
        f"{costliest} {costs[costliest]:.3f} ms a request, {cheapest} {costs[cheapest]:.3f} ms."
    )


def describe_memory(measured: Measured) -> str:
    """Return one line with the most memory that a stream of the row with the most streams took; "" without streams."""
    streams = [row for row in measured if row[0].pace_s]
    if not streams:
        return ""
    workload, servers = max(streams, key=lambda row: row[0].connections)
    each = [
        f"{name} {max(round_.grown_kib for round_ in rounds):.0f} KiB"
        for name, rounds in zip(workload.servers, servers, strict=True)
    ]
    return f"Memory of one of {workload.connections:,} streams at once: {', '.join(each)}."


def _figures(workload: Workload, rounds: Sequence[Measurement]) -> list[str]:
    unit = "events" if workload.pace_s else "requests"
    return [
        f"{median(_rate(workload, each) for each in rounds):,.0f} {unit}",
        f"{median(_cpu_ms(workload, each) for each in rounds):.3f}",
        f"{median(_percentile_ms(each, 0.50) for each in rounds):.1f}",
        f"{median(_percentile_ms(each, 0.99) for each in rounds):.1f}",
        f"{median(each.cpu_s / each.seconds for each in rounds):.2f}",
    ]


def _ratios(workload: Workload, rounds: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[str]:
    """Compare each round with the baseline's same round, because a disturbance affects both."""
    pairs = list(zip(rounds, baseline, strict=True))
    by_rate = median(_rate(workload, own) / _rate(workload, other) for own, other in pairs)
    by_cpu = median(_cpu_ms(workload, other) / _cpu_ms(workload, own) for own, other in pairs)
    return [f"**{by_rate:.2f}**", f"{by_cpu:.2f}"]


def _count(workload: Workload, measurement: Measurement) -> int:
    return max(1, measurement.events if workload.pace_s else measurement.answers)


def _rate(workload: Workload, measurement: Measurement) -> float:
    return _count(workload, measurement) / measurement.seconds


def _cpu_ms(workload: Workload, measurement: Measurement) -> float:
    """Return the processor time of one request, or of one event of a paced stream."""
    return 1000 * max(measurement.cpu_s, 0.01) / _count(workload, measurement)


def _percentile_ms(measurement: Measurement, share: float) -> float:
    latencies = measurement.latencies_s
    return 1000 * latencies[int(share * (len(latencies) - 1))] if latencies else float("nan")
