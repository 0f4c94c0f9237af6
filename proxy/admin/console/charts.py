"""Charts as SVG: drawn on the server, coloured by the stylesheet."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, WIDE = 320, 96, 960
LEFT, TOP, BOTTOM = 4, 14, 14
LEAST_BARS = 24
"""For how many bars there is room at least: a single one is not as wide as the chart."""
LINE = Markup('<polyline class="line s{index}" points="{points}"/>')
DOT = Markup('<circle class="dot s{index}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
GRID = Markup('<line class="grid" x1="0" x2="{width}" y1="{y}" y2="{y}"/>')
TEXT = Markup('<text class="{kind}" x="{x}" y="{y}">{text}</text>')
COLUMN = Markup(
    '<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"><title>{text}</title></rect>'
)
FRAME = Markup('<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{inner}</svg>')
BAR = Markup('<rect class="{kind}" x="{x:.2f}" y="0" width="{width:.2f}" height="10" rx="1.5"/>')
SPAN = Markup('<svg class="span" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{inner}</svg>')

Course = Sequence[Mapping[str, Any]]


def line_chart(
    course: Course, names: Sequence[str], label: str, write: Callable[[float], str], clock: Callable[[str], str]
) -> Markup:
    """Return a chart of some members of the points of a course, the first and the last time below it.

    `write` writes a value with its unit. A member that a point does not have leaves a gap in its line.
    """
    values = [point[name] for point in course for name in names if point[name] is not None]
    top = max(values, default=0) or 1
    inner = [GRID.format(width=WIDTH, y=y) for y in (TOP, (TOP + HEIGHT - BOTTOM) / 2, HEIGHT - BOTTOM)]
    for index, name in enumerate(names, 1):
        inner += _lines(course, name, index, top)
    inner.append(TEXT.format(kind="axis", x=LEFT, y=10, text=write(top) if values else "no calls"))
    if course:
        inner.append(TEXT.format(kind="axis", x=LEFT, y=HEIGHT - 3, text=clock(course[0]["time"])))
        inner.append(
            TEXT.format(kind="axis end", x=WIDTH - LEFT, y=HEIGHT - 3, text=f"{clock(course[-1]['time'])} UTC")
        )
    text = f"{label}: at most {write(top)}" if values else f"{label}: no calls"
    return FRAME.format(width=WIDTH, height=HEIGHT, label=text, inner=Markup("").join(inner))


def _lines(course: Course, name: str, index: int, top: float) -> list[Markup]:
    """Return the parts of a line between gaps; a part of one point is a dot."""
    step = (WIDTH - 2 * LEFT) / max(1, len(course) - 1)
    parts: list[list[tuple[float, float]]] = [[]]
    for place, point in enumerate(course):
        value = point[name]
        if value is None:
            parts.append([])
            continue
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top
        parts[-1].append((LEFT + place * step, y))
    drawn = []
    for part in filter(None, parts):
        if len(part) == 1:
            drawn.append(DOT.format(index=index, x=part[0][0], y=part[0][1]))
        else:
            drawn.append(LINE.format(index=index, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in part)))
    return drawn


def span(began: float, lasted: float, whole: float, kind: str = "bar") -> Markup:
    """Return a bar that shows which part of a whole something lasted."""
    scale = 100 / whole if whole else 0
    width = max(0.6, lasted * scale)
    return SPAN.format(inner=BAR.format(kind=kind, x=min(began * scale, 100 - width), width=width))


def share(value: float, whole: float, kind: str = "") -> Markup:
    """Return a bar that shows how much of a whole something is, by default with a colour for much of a limit."""
    part = min(1.0, value / whole) if whole else 0.0
    kind = kind or ("bar full" if part >= 1 else "bar high" if part >= 0.8 else "bar")
    return SPAN.format(inner=BAR.format(kind=kind, x=0, width=part * 100))


def bar_chart(bars: Sequence[tuple[str, float]], label: str, write: Callable[[float], str]) -> Markup:
    """Return a chart with a bar for each value, the first and the last of their names below it."""
    top = max((value for _, value in bars), default=0) or 1
    step = (WIDE - 2 * LEFT) / max(LEAST_BARS, len(bars))
    inner = [GRID.format(width=WIDE, y=y) for y in (TOP, (TOP + HEIGHT - BOTTOM) / 2, HEIGHT - BOTTOM)]
    for place, (name, value) in enumerate(bars):
        height = (HEIGHT - TOP - BOTTOM) * value / top
        inner.append(COLUMN.format(
            x=LEFT + (place + 0.1) * step, y=HEIGHT - BOTTOM - height, width=step * 0.8, height=height,
            text=f"{name}: {write(value)}",
        ))  # fmt: skip
    inner.append(TEXT.format(kind="axis", x=LEFT, y=10, text=write(top)))
    if bars:
        inner.append(TEXT.format(kind="axis", x=LEFT, y=HEIGHT - 3, text=bars[0][0]))
    if len(bars) > 1:
        inner.append(TEXT.format(kind="axis end", x=WIDE - LEFT, y=HEIGHT - 3, text=bars[-1][0]))
    return FRAME.format(width=WIDE, height=HEIGHT, label=f"{label}: at most {write(top)}", inner=Markup("").join(inner))
