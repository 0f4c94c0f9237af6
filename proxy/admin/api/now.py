"""What happens now: rates, times, tokens, cost, and the course of the last quarter of an hour."""

import asyncio
from collections.abc import AsyncIterator

import orjson
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest
from proxy.admin.api.formats import as_ms, as_time
from proxy.admin.api.targets import TargetHealth, health_of_targets
from proxy.admin.samples import ALL, Sample, percentile
from proxy.admin.services import Services

WINDOW_S = 60.0
"""The time over which the numbers of now are averages, in seconds."""
MINUTE_S = 60.0
SILENCE_S = 15.0
"""After how long without a sample a comment is sent, in seconds."""
EVENTS = "text/event-stream"


class Point(TypedDict):
    """The averages between two samples."""

    time: str | None
    seconds: float
    in_flight: float
    calls_per_min: float
    refused_per_min: float
    failed_per_min: float
    input_tokens_per_min: float
    output_tokens_per_min: float
    cost_usd_per_min: float
    saved_usd_per_min: float
    cache_hit_ratio: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    first_event_p50_ms: float | None
    first_event_p95_ms: float | None


class NowReport(TypedDict):
    now: Point | None
    course: list[Point]
    targets: list[TargetHealth]


def point_of(earlier: Sample, later: Sample, team: str) -> Point:
    """Return the averages of one team between two samples."""
    changed = later.of(team).since(earlier.of(team))
    seconds = max(0.001, later.at - earlier.at)
    per_min = MINUTE_S / seconds
    latency, first = changed.latency, changed.first_event
    return Point(
        time=as_time(later.at),
        seconds=round(seconds, 3),
        in_flight=later.in_flight_of(team),
        calls_per_min=round(changed.calls * per_min, 2),
        refused_per_min=round(changed.refused * per_min, 2),
        failed_per_min=round(changed.failed * per_min, 2),
        input_tokens_per_min=round(changed.input_tokens * per_min, 1),
        output_tokens_per_min=round(changed.output_tokens * per_min, 1),
        cost_usd_per_min=round(changed.cost_usd * per_min, 6),
        saved_usd_per_min=round(changed.saved_usd * per_min, 6),
        cache_hit_ratio=round(changed.hits / changed.lookups, 4) if changed.lookups else None,
        latency_p50_ms=as_ms(percentile(latency, 0.5)),
        latency_p95_ms=as_ms(percentile(latency, 0.95)),
        latency_p99_ms=as_ms(percentile(latency, 0.99)),
        first_event_p50_ms=as_ms(percentile(first, 0.5)),
        first_event_p95_ms=as_ms(percentile(first, 0.95)),
    )


async def get_now(request: AdminRequest) -> NowReport:
    """Return the numbers of now for the operator's team, or for all; targets only for all."""
    return await report_now(request.services, request.operator.team)


async def report_now(services: Services, team: str) -> NowReport:
    """Return the numbers of now for one team, or for all."""
    last = services.samples.last(WINDOW_S)
    return NowReport(
        now=None if last is None else point_of(*last, team or ALL),
        course=[point_of(earlier, later, team or ALL) for earlier, later in services.samples.course()],
        targets=[] if team else await health_of_targets(services),
    )


async def stream_now(request: AdminRequest) -> AsyncIterator[str]:
    """Return the same as server-sent events, one for each sample; a comment where there is none for long."""
    services, team = request.services, request.operator.team

    async def events() -> AsyncIterator[str]:
        async for is_new in follow(services, SILENCE_S):
            yield f"data: {orjson.dumps(await report_now(services, team)).decode()}\n\n" if is_new else ": \n\n"

    return events()


async def follow(services: Services, timeout_s: float) -> AsyncIterator[bool]:
    """Yield True with each new sample, and False when there was none for some seconds."""
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                await services.samples.taken.wait()
        except TimeoutError:
            yield False
        else:
            yield True


ENDPOINTS = (
    AdminEndpoint("GET", "/now", "Rates, times, tokens and cost, and their course", get_now, NowReport),
    AdminEndpoint(
        "GET", "/now/stream", "The same with each sample, as server-sent events of JSON", stream_now, str, media=EVENTS
    ),
)  # fmt: skip
