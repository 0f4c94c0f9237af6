"""Charts as SVG."""

from proxy.admin.console.charts import bar_chart, line_chart, share, span

COURSE = [{"time": f"t{n}", "a": value} for n, value in enumerate((1, 2, None, 4))]


def test_a_line_has_gaps_where_nothing_is_known():
    """A part of one point is a dot, and the highest value is beside the top."""
    drawn = str(line_chart(COURSE, ["a"], "A <b>", lambda value: f"{value} s", str))

    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 1
    assert "4 s" in drawn
    assert 'aria-label="A &lt;b&gt;: at most 4 s"' in drawn


def test_a_chart_without_values_says_so():
    """It has no line."""
    drawn = str(line_chart([], ["a"], "A", str, str))

    assert "no calls" in drawn
    assert "polyline" not in drawn


def test_a_bar_stays_within_its_whole():
    """However short or long it is."""
    assert 'x="50.00" y="0" width="25.00"' in span(2, 1, 4)
    assert 'x="99.40" y="0" width="0.60"' in span(4, 0, 4)
    assert 'class="bar full" x="0.00" y="0" width="100.00"' in share(7, 5)
    assert 'width="0.00"' in share(0, 0)


def test_bars_are_as_high_as_their_values():
    """Each has its name and its value as a title."""
    drawn = str(bar_chart([("a<b", 1.0), ("c", 2.0)], "Cost", lambda value: f"${value}"))

    assert 'height="34.0"><title>a&lt;b: $1.0</title>' in drawn
    assert 'height="68.0"><title>c: $2.0</title>' in drawn
    assert "$1" in str(bar_chart([], "Cost", lambda value: f"${value}"))
