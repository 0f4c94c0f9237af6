"""GET /v1/usage: what this caller has used."""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from policies import Balance
from proxy.context import Caller
from proxy.http.exchange import Exchange
from proxy.http.router import Endpoint
from proxy.identity.directory import Directory
from proxy.rules import Rules
from proxy.stores import Store, StoreError
from proxy.usage.formats import report_object
from proxy.usage.query import PERIODS, TooManyLines, hours_between, read_usage
from proxy.usage.table import UsageTable
from proxy.usage.times import parse_time
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.loggable import in_ascii
from proxy.wire.query import query_pairs
from proxy.workers import FairSlot

MAX_HOURS, MAX_LINES = 31 * 24 + 1, 1_000
"""How long a time may be that is asked for, in hours, and how many lines an answer may have."""
DIMENSIONS = ("key", "model", "target")


@dataclass(frozen=True, slots=True)
class UsageEndpoint:
    """Shows a caller its own usage, or that of its team if the config says so."""

    directory: Directory
    rules: Rules
    state: Store
    settings: UsageTable
    turns: FairSlot = field(default_factory=FairSlot)
    """One answer is computed at a time, and teams take turns: each reads hundreds of keys."""

    def endpoints(self) -> Iterator[Endpoint]:
        if self.settings.keep_days:
            yield Endpoint("GET", "/v1/usage", self.show)

    async def show(self, exchange: Exchange) -> web.StreamResponse:
        caller = exchange.identify(self.directory)
        given = _parameters(exchange.head.query)
        now = datetime.now(UTC)
        try:
            since, until = parse_time(given.get("since", "today"), now), parse_time(given.get("until", "now"), now)
        except ValueError as error:
            raise RequestError(in_ascii(str(error)), code="invalid_value") from error
        if since >= until or hours_between(since, until) > MAX_HOURS:
            message = "since has to be before until, and not by more than 31 days."
            raise RequestError(message, code="invalid_value", param="since")
        by, where = self._by(given.get("by", "")), self._where(caller)
        try:
            async with self._turn(caller.team):
                report = await read_usage(self.state, (since, until), by, where, most_lines=MAX_LINES)
                budgets = await self.rules.balances([caller], [])
        except StoreError as error:
            raise Unavailable("Usage cannot be read right now.", code="state_unavailable") from error
        except TooManyLines as error:
            message = f"The answer has more than {MAX_LINES} lines. Ask for a shorter time."
            raise RequestError(message, code="invalid_value", param="by") from error
        owned = [balance for rule, balance in budgets if rule.is_enforced_for(caller)]
        return exchange.json_response({**report_object(report), **where, "budgets": [*map(_budget, owned)]})

    @asynccontextmanager
    async def _turn(self, team: str) -> AsyncIterator[None]:
        """Wait for the team's turn, which is the block."""
        await self.turns.take(team)
        began = time.monotonic()
        try:
            yield
        finally:
            self.turns.release(team, time.monotonic() - began)

    def _where(self, caller: Caller) -> Mapping[str, str]:
        """Return the labels of what a caller may see."""
        return {"team": caller.team} if self.settings.team_view else {"team": caller.team, "caller": caller.name}

    def _by(self, text: str) -> tuple[str, ...]:
        """Return the dimensions that are asked for. Raises RequestError."""
        known = (*DIMENSIONS, *PERIODS, *self.settings.metadata, *(("caller",) if self.settings.team_view else ()))
        by = tuple(dict.fromkeys(name for name in text.split(",") if name))
        for name in by:
            if name not in known:
                message = f"'{in_ascii(name, 64)}' is no dimension; known are {', '.join(known)}."
                raise RequestError(message, code="invalid_value", param="by")
        return by


def _budget(balance: Balance) -> Mapping[str, object]:
    """Return what a caller sees of a budget."""
    resets_in_s = None if balance.left_s is None else round(balance.left_s)
    names = ("unit", "window", "limit", "used")
    return {**{name: getattr(balance, name) for name in names}, "resets_in_s": resets_in_s}


def _parameters(query: str) -> Mapping[str, str]:
    """Return the parameters of a query. Raises RequestError for one that is unknown or given twice."""
    pairs = [pair for pair in query_pairs(query) if pair != ("", "")]
    for name, _ in pairs:
        if name not in ("since", "until", "by") or len([each for each, _ in pairs if each == name]) > 1:
            message = "The parameters are since, until and by, each at most once."
            raise RequestError(message, code="invalid_value", param=in_ascii(name, 64))
    return dict(pairs)
