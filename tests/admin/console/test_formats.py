"""How numbers and times are written."""

import pytest

from proxy.admin.console import formats


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.number(None), "\N{EN DASH}"), (formats.number(1234567), "1 234 567"), (formats.number(0.5, 2), "0.50"),
        (formats.short(999), "999"), (formats.short(1234), "1 234"), (formats.short(12_345), "12.3k"),
        (formats.short(3.25), "3.2"), (formats.short(4_500_000), "4.5M"), (formats.short(None), "\N{EN DASH}"),
        (formats.duration(0.07), "0.07 ms"), (formats.duration(5.25), "5.2 ms"), (formats.duration(320), "320 ms"),
        (formats.duration(4200), "4.20 s"), (formats.duration(90_000), "1.5 min"), (formats.dollars(0), "$0.00"),
        (formats.dollars(0.0029), "$0.0029"), (formats.dollars(0.000019), "$0.000019"),
        (formats.dollars(1234.5), "$1 234.50"), (formats.percent(0.125), "12.5 %"), (formats.size(None), "\N{EN DASH}"),
        (formats.size(12), "12 B"), (formats.size(2048), "2.0 KiB"), (formats.period(90), "0:01:30"),
        (formats.period(172_800), "2.0 days"), (formats.moment("2026-11-30T10:43:05.123+00:00"), "2026-11-30 10:43:05 UTC"),
        (formats.moment(None), "\N{EN DASH}"), (formats.clock("2026-11-30T10:43:05.123+00:00"), "10:43:05"),
    ],
)  # fmt: skip
def test_numbers_have_their_units(written, expected):
    """Thousands are apart, and what is not known is a dash."""
    assert written.replace(formats.THIN, " ") == expected
