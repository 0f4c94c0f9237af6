"""The results of one attack, the promises that it broke, and the table of all attacks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.soak.gateway import MEMORY_MB, Reading
from tests.soak.polite import Figures
from tests.soak.wire import Outcomes

HEADINGS = (
    "attack", "requests", "lost", "p50 ms", "p99 ms", "max ms", "own p99", "quiet p99", "direct p99", "event p99 ms",
    "own event p99", "quiet event p99", "RSS at most MB", "RSS before, after MB", "kept MB", "files", "tasks", "threads", "result",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds."""

    added_ms: float
    base_mb: float
    left_mb: float
    spare_files: int
    spare_tasks: int
    stop_s: float

    def after(self, before: Reading) -> Reading:
        """Return the most that a gateway may hold after an attack."""
        return replace(
            before,
            rss_mb=before.rss_mb + self.left_mb,
            files=before.files + self.spare_files,
            tasks=before.tasks + self.spare_tasks,
        )


@dataclass(slots=True)
class Row:
    """One attack. `before` and `after` are None if the gateway could not be read."""

    name: str
    quiet: Figures = field(default_factory=Figures)
    attacked: Figures = field(default_factory=Figures)
    before: Reading | None = None
    after: Reading | None = None
    peak_mb: float = 0.0
    stop_s: float = 0.0
    exit_status: int | None = 0
    outcomes: Outcomes = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # found while the attack ran


def percentile_ms(values: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds; 0 of nothing."""
    ordered = sorted(values)
    return 1000 * ordered[round(share * (len(ordered) - 1))] if ordered else 0.0


def find_faults(row: Row, allowed: Thresholds) -> list[str]:
    """Return the promises that were broken."""
    faults = [*row.faults, *(outcome for outcome in row.outcomes if "BROKEN" in outcome)]
    if row.attacked.lost:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(row.attacked.lost).most_common(3))
        faults.append(f"{len(row.attacked.lost)} lost ({kinds})")
    faults += _find_slowness(row, allowed)
    if row.peak_mb > MEMORY_MB + allowed.base_mb:
        faults.append(f"{row.peak_mb:.0f} MB in use; {MEMORY_MB + allowed.base_mb:.0f} MB are allowed")
    if row.before is not None and row.after is not None:
        faults += _find_remains(row.before, row.after, allowed)
    if row.exit_status != 0:
        faults.append("SIGTERM did not end it" if row.exit_status is None else f"exit status {row.exit_status}")
    elif row.stop_s > allowed.stop_s:
        faults.append(f"{row.stop_s:.1f} s to stop")
    return faults


def _find_slowness(row: Row, allowed: Thresholds) -> Iterator[str]:
    """Compare with the quiet time just before, and with the upstream called without the gateway at the same time.

    What the gateway waited for a core is subtracted.
    """
    direct_ms = percentile_ms(row.attacked.direct_s, 0.99)
    for name, quiet, attacked in (
        ("requests", row.quiet.own_latencies_s, row.attacked.own_latencies_s),
        ("events", row.quiet.own_delays_s, row.attacked.own_delays_s),
    ):
        added_ms = percentile_ms(attacked, 0.99) - max(percentile_ms(quiet, 0.99), direct_ms)
        if added_ms > allowed.added_ms:
            yield f"p99 of {name} {added_ms:.0f} ms more; {allowed.added_ms:.0f} ms are allowed"


def _find_remains(before: Reading, after: Reading, allowed: Thresholds) -> Iterator[str]:
    if after.files > before.files + allowed.spare_files:
        yield f"{after.files - before.files} files more than before"
    if after.tasks > before.tasks + allowed.spare_tasks:
        yield f"{after.tasks - before.tasks} tasks more than before"
    if after.other_mb > before.other_mb + allowed.left_mb:
        yield f"{after.other_mb - before.other_mb:.0f} MB more than before, beside what stores keep"
    if after.kept_mb > after.may_keep_mb:
        yield f"stores keep {after.kept_mb:.0f} MB; {after.may_keep_mb:.0f} MB are allowed"


def render(rows: Sequence[Row], allowed: Thresholds) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|---{'|---:' * (len(HEADINGS) - 2)}|---|"
    for row in rows:
        yield f"| {' | '.join(_cells(row, allowed))} |"


def render_outcomes(row: Row) -> str:
    """Return the counted results of the attacker, in one line."""
    seen = ", ".join(f"{count} x {outcome}" for outcome, count in row.outcomes.most_common(8))
    return f"{row.name}: {seen or 'nothing'}"


def _cells(row: Row, allowed: Thresholds) -> Iterator[str]:
    quiet, attacked = row.quiet, row.attacked
    yield row.name
    yield f"{attacked.requests} + {attacked.streams} streams"
    yield str(len(attacked.lost))
    yield from (f"{percentile_ms(attacked.latencies_s, share):.0f}" for share in (0.5, 0.99, 1.0))
    for values in (
        attacked.own_latencies_s, quiet.latencies_s, attacked.direct_s,
        attacked.delays_s, attacked.own_delays_s, quiet.delays_s,
    ):  # fmt: skip
        yield f"{percentile_ms(values, 0.99):.0f}" if values else "-"
    yield f"{row.peak_mb:.0f}" if row.peak_mb else "-"
    if row.before is None or row.after is None:
        yield from ("-",) * 5
    else:
        before, after = row.before, row.after
        yield f"{before.rss_mb:.0f}, {after.rss_mb:.0f}"
        yield f"{after.kept_mb:.0f}"
        yield f"{before.files}, {after.files}"
        yield f"{before.tasks}, {after.tasks}"
        yield f"{before.threads}, {after.threads}"
    faults = find_faults(row, allowed)
    yield f"**broken**: {'; '.join(faults)}" if faults else "kept"
