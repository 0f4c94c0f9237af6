"""The models: where calls of each go, what it can do, what it costs, and which callers may ask it."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from backends import Backend
from proxy.admin.api.callers import known_callers
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Parameters, Wanted
from proxy.admin.parts import GatewayParts
from proxy.context import Caller
from proxy.wire.errors import HeadgateError, UnknownModel

DESCRIBE_S = 2.0
MOST_CALLERS = 500


class ModelFilter(Parameters):
    model: Wanted = ""
    caller: Wanted = ""
    """Only what this caller may ask."""
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class ModelFacts(TypedDict):
    model: str
    sent_as: list[str]
    route: str
    targets: list[str]
    fallbacks: list[str]
    operations: list[str]
    keeps_state: bool
    speaks_websocket: bool
    cached: str
    capabilities: dict[str, Any]
    input_usd_per_million: float | None
    output_usd_per_million: float | None
    callers: list[str]


class ModelList(TypedDict):
    models: list[ModelFacts]
    is_complete: bool


async def read_models(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return the models that can be named, and who may name each."""
    pipeline = parts.pipeline()
    routes, rules = pipeline.routes, pipeline.rules
    seen = [caller for caller in known_callers(parts) if argument["team"] in ("", caller.team)]
    asking = [caller for caller in seen if argument["caller"] in ("", caller.name)][:MOST_CALLERS]
    names = [*await routes.models()]
    for caller in asking:
        names += rules.model_names(caller)
    found = []
    for name in dict.fromkeys(names):
        if argument["model"] not in ("", name):
            continue
        await asyncio.sleep(0)  # for thousands of callers and models it takes long
        facts = await _facts(parts, name, asking)
        if facts is not None and (facts["callers"] or not (argument["caller"] or argument["team"])):
            found.append(facts)
        if len(found) > argument["limit"]:
            break
    return {"models": found[: argument["limit"]], "is_complete": len(found) <= argument["limit"]}


async def _facts(parts: GatewayParts, name: str, callers: list[Caller]) -> ModelFacts | None:
    """Return what is known of a name; None if no route serves what it stands for."""
    pipeline, sent_as, asking = parts.pipeline(), dict[str, None](), []
    for caller in callers:
        model = pipeline.rules.resolve_model(name, caller)
        with suppress(UnknownModel):
            if model is not None and pipeline.routes.route_of(model):
                sent_as[model] = None
                asking.append(caller.name)
    try:
        route = pipeline.routes.route_of(next(iter(sent_as), name))
    except UnknownModel:
        return None
    first = route.targets[0]
    cost_input, cost_output = await _prices(parts, first, next(iter(sent_as), name))
    settings = parts.config().cache
    return ModelFacts(
        model=name, sent_as=[*sent_as], route=route.name, targets=[target.name for target in route.targets],
        fallbacks=[fallback.route.name for fallback in route.fallbacks],
        operations=sorted(set().union(*(target.operations for target in route.targets))),
        keeps_state=route.keeps_state, speaks_websocket=first.speaks_websocket,
        cached="never" if settings is None else route.cache or settings.when,
        capabilities=await _capabilities(first, name), input_usd_per_million=cost_input,
        output_usd_per_million=cost_output, callers=sorted(set(asking)),
    )  # fmt: skip


async def _capabilities(backend: Backend, model: str) -> dict[str, Any]:
    with suppress(HeadgateError, TimeoutError):
        async with asyncio.timeout(DESCRIBE_S):
            return dict(await backend.describe(model))
    return {}


async def _prices(parts: GatewayParts, backend: Backend, model: str) -> tuple[float | None, float | None]:
    """Return what a million tokens of input and of output cost, in small calls; None if that is not known."""
    quote = parts.process.targets.of(backend).quote(model)
    rates = None if quote is None else await quote.known_rates()
    if rates is None:
        return None, None
    return tuple(float(rate.price_at(1)) for rate in (rates.input, rates.output))  # type: ignore[return-value]


async def list_models(request: AdminRequest) -> ModelList:
    """Return the models that can be named; for an operator of a team those that its callers may name."""
    wanted = request.query.model_dump() | {"team": request.operator.team}
    found: ModelList = await request.services.processes.one("models", **wanted)
    return found


ENDPOINTS = (AdminEndpoint("GET", "/models", "The models, and who may ask them", list_models, ModelList, ModelFilter),)
