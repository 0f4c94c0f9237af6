"""Writes a report as a table, CSV, JSON, or CSV in the columns of FOCUS, the FinOps Open Cost and Usage Specification.

Source: https://focus.finops.org/focus-specification/v1-3/ for FOCUS. Its costs are estimates by the prices that the
gateway knows, not what a provider bills.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from proxy.usage.columns import COLUMNS, DOLLAR
from proxy.usage.query import UsageLine, UsageReport

FOCUS_BY = ("hour", "team", "caller", "key", "model", "target")
"""The dimensions that a report needs to be written as FOCUS; keys of metadata follow, as tags."""
TOKENS = (
    "input_tokens", "output_tokens", "estimated_input_tokens", "estimated_output_tokens",
)  # fmt: skip
EXTRA = ("calls", *TOKENS, "cached_input_tokens", "reasoning_tokens")
"""Columns that FOCUS does not have."""
HIDDEN = frozenset({"cached_input_tokens", "cache_write_tokens", "reasoning_tokens"})
"""Columns that a table has only if they are not 0 in all lines: they are parts of others."""
SPREADSHEET = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a text must not begin with: spreadsheets would run it."""


def as_json(report: UsageReport) -> str:
    """Return the report as a JSON object."""
    return orjson.dumps(report_object(report), option=orjson.OPT_INDENT_2).decode()


def report_object(report: UsageReport) -> dict[str, Any]:
    """Return the report as the object that GET /v1/usage answers with."""
    return {
        "object": "usage",
        "since": report.since.isoformat(),
        "until": report.until.isoformat(),
        "by": report.by,
        "data": [dict(zip(report.by, line.labels, strict=True)) | line.numbers for line in report.lines],
        "total": report.total.numbers,
    }


def report_of(found: Mapping[str, Any]) -> UsageReport:
    """Return the report that an object describes, as the admin API answers with it."""
    since, until = (datetime.fromisoformat(found[name]) for name in ("since", "until"))
    by = tuple(found["by"])
    lines = [UsageLine(tuple(data[name] for name in by), _amounts(data)) for data in found["data"]]
    return UsageReport(since, until, by, tuple(lines), UsageLine((), _amounts(found["total"])))


def _amounts(numbers: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(numbers[name]) if name in numbers else round(numbers[f"{name}_usd"] * DOLLAR) for name in COLUMNS)


def as_csv(report: UsageReport) -> str:
    """Return a line for each line of the report, costs in US dollars."""
    rows = [[*map(_safe, line.labels), *map(_number, line.numbers.values())] for line in report.lines]
    return _csv([*report.by, *report.total.numbers], rows)


def as_table(report: UsageReport) -> str:
    """Return a table for people, with totals. Columns without any number are left out."""
    lines = [*report.lines, report.total]
    names = [
        name for name, total in report.total.numbers.items()
        if total or (name not in HIDDEN and name in ("calls", "cost_usd"))
    ]  # fmt: skip
    heads = [*report.by, *(name.replace("_", " ").replace(" usd", ", $") for name in names)]
    table = [heads]
    for line in lines:
        labels = [label or "-" for label in line.labels] if line is not report.total else _total_labels(report.by)
        numbers = line.numbers
        table.append([*labels, *(_shown(name, numbers) for name in names)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = len(report.by)
    shown = [
        "  ".join(cell.ljust(width) if place < texts else cell.rjust(width)
                  for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table
    ]  # fmt: skip
    zone = report.since.tzname() or "UTC"
    head = f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} ({zone}), whole hours"
    return "\n".join([head, "", *shown])


def as_focus(report: UsageReport, providers: Mapping[str, str]) -> str:
    """Return the report, which is by FOCUS_BY and keys of metadata, in columns of FOCUS 1.3.

    `providers` are those of the targets. A line without tokens and costs is left out.
    """
    rows = [
        _focus_row(report, line, providers)
        for line in report.lines
        if line.cost_usd or any(line[name] for name in TOKENS)
    ]
    return _csv(list(rows[0] if rows else _focus_row(report, _EMPTY, {})), [[*row.values()] for row in rows])


_EMPTY = UsageLine(("1970-01-01T00:00", "", "", "", "", ""), (0,) * 32)


def _focus_row(report: UsageReport, line: UsageLine, providers: Mapping[str, str]) -> dict[str, str]:
    hour, team, caller, key, model, target = line.labels[: len(FOCUS_BY)]
    start = datetime.fromisoformat(hour).replace(tzinfo=report.since.tzinfo).astimezone(UTC)
    month = start.replace(day=1, hour=0)
    provider, cost, tokens = providers.get(target, target) or "Headgate", _cost(line), str(sum(line[n] for n in TOKENS))
    tags = {"caller": caller, "key": key} | dict(
        zip(report.by[len(FOCUS_BY) :], line.labels[len(FOCUS_BY) :], strict=False)
    )
    return {
        "BilledCost": cost,
        "BillingAccountId": "headgate",
        "BillingAccountName": "Headgate",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _moment((month + timedelta(days=32)).replace(day=1)),
        "BillingPeriodStart": _moment(month),
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": _safe(f"Tokens of {model}" if model else "Tokens"),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _moment(start + timedelta(hours=1)),
        "ChargePeriodStart": _moment(start),
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "HostProviderName": _safe(provider),
        "InvoiceIssuerName": _safe(provider),
        "ListCost": cost,
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "ResourceId": _safe(model),
        "ResourceName": _safe(model),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": _safe(target or "cache"),
        "ServiceProviderName": _safe(provider),
        "SubAccountId": _safe(team),
        "SubAccountName": _safe(team),
        "Tags": orjson.dumps({name: text for name, text in tags.items() if text}).decode(),
        **{f"x_{_camel(name)}": str(line[name]) for name in EXTRA},
    }  # fmt: skip


def _cost(line: UsageLine) -> str:
    return f"{line.cost_usd:.9f}"


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _csv(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, and no reader of CSV for the end of a line."""
    shown = text.replace("\r", " ")  # the csv module writes it without quotes
    return f"'{shown}" if text.startswith(SPREADSHEET) else shown


def _number(value: float) -> str:
    return f"{value:.9f}" if isinstance(value, float) else str(value)


def _shown(name: str, numbers: Mapping[str, float]) -> str:
    """Return a number as text. Calls whose price is not known have not cost 0."""
    value = numbers[name]
    if name == "cost_usd" and not value and numbers["unpriced"]:
        return "unpriced"
    return f"{value:,.4f}" if name.endswith("_usd") else f"{value:,}"


def _total_labels(by: Sequence[str]) -> list[str]:
    return ["total", *[""] * (len(by) - 1)] if by else []
