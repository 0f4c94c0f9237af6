"""model -> Route. The first route whose pattern matches the model's name is taken."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from backends import Backend
from policies.support.globs import compile_globs, is_glob
from proxy.cached_result import CachedResult
from proxy.config.schema import CacheWhen, Strategy
from proxy.context import Slot
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, UnknownModel
from proxy.wire.headers import HeaderNames

FALLBACK = Slot[str]("routing.fallback")
"""The name of the route that answered in place of the call's own."""
LIST_TTL_S = 60
LIST_TIMEOUT_S = 5
"""How long one backend may take to list its models, in seconds."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """A route that is tried after another one, and the model that its targets are asked for; None: the call's own."""

    route: "Route"
    model: str | None


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the targets of a route are chosen, and how often a call may be sent: see `RouteTable`."""

    strategy: Strategy = "order"
    weights: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 2
    retry_within_s: float = 60
    hedge_after_s: float | None = None
    affinity_max_per_min: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A name, the models it serves as a glob, and the targets that can answer them, in order of preference.

    Targets of one route are interchangeable: the cache shares answers between them.
    """

    name: str
    model: str
    targets: tuple[Backend, ...]
    is_default: bool = False
    pool: PoolSettings = field(default_factory=PoolSettings)
    fallbacks: tuple[Fallback, ...] = ()
    cache: CacheWhen | None = None
    keeps_state: bool = field(init=False, compare=False)
    """Whether its targets resolve the ids of responses and conversations themselves."""
    compacts: bool = field(init=False, compare=False)
    """Whether one of them compacts conversations itself."""
    header_names: tuple[HeaderNames, ...] = field(init=False, compare=False)
    """The names of the headers that each of them may see."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keeps_state", all(target.keeps_state for target in self.targets))
        object.__setattr__(self, "compacts", any(target.compacts for target in self.targets))
        object.__setattr__(self, "header_names", tuple(target.header_names for target in self.targets))

    def narrowed_to(self, targets: Sequence[Backend], fallbacks: Sequence[Fallback] = ()) -> "Route":
        """Return the route with fewer targets and fallbacks: the others could not answer a call."""
        return replace(self, targets=tuple(targets), fallbacks=tuple(fallbacks))

    def preferring(self, target: Backend) -> "Route":
        """Return the route with one of its targets first, whatever its strategy."""
        others = [each for each in self.targets if each is not target]
        return replace(self, targets=(target, *others), pool=replace(self.pool, strategy="order"))

    def headers(self, call: Call) -> Mapping[str, str]:
        """Return the headers of a call that one of its targets may see."""
        if len(self.targets) == 1:
            return self.targets[0].header_names.select(call.headers)
        return {name: value for each in self.targets for name, value in each.header_names.select(call.headers).items()}


class Routes:
    """The routes in the order of the config."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [(compile_globs([route.model]), route) for route in routes]
        self.default = next((route for route in routes if route.is_default), None)
        """The route of calls without a model."""
        first = () if self.default is None else (self.default,)
        targets = {target.name: target for route in (*first, *routes) for target in route.targets}
        self.targets = [*targets.values()]
        """All targets, each once, in order of preference."""
        self.stateful = [target for target in self.targets if target.keeps_state]
        """The targets that keep state, each once, in order of preference."""
        self._serving = lru_cache(1024)(self._match)
        self._models = CachedResult(self._list_models, LIST_TTL_S)
        self._offers: dict[str, Sequence[str]] = {}  # the last list of each target

    def match(self, call: Call) -> Route:
        """Return the route of a call's model, the default one for a call without a model. Raises UnknownModel."""
        return self.matching(call)[0]

    def matching(self, call: Call) -> Sequence[Route]:
        """Return every route that serves a call's model, in the order of the config. Raises UnknownModel."""
        model = call.model
        if not model and self.default is not None:
            return [self.default]
        found = self._serving(model)
        if not found:
            raise UnknownModel(model)
        return found

    def _match(self, model: str) -> Sequence[Route]:
        return [route for pattern, route in self._routes if pattern.match(model)]

    def with_model(self, call: Call) -> Call:
        """Return the call with the default route's model if it names neither a model nor a prompt that may have one."""
        route = self.default
        if call.model or route is None or is_glob(route.model):
            return call
        may_be_in_prompt = call.body.get("prompt") is not None and not route.targets[0].needs_model
        return call if may_be_in_prompt else call.with_fields(model=route.model)

    async def models(self) -> Mapping[str, Route]:
        """Return every model that can be named: those that routes name exactly, and those that targets list."""
        return await self._models.get()

    def route_of(self, model: str) -> Route:
        """Return the route of a model. Raises UnknownModel."""
        for pattern, route in self._routes:
            if pattern.match(model):
                return route
        raise UnknownModel(model)

    def has_list(self, route: Route) -> bool:
        """Whether it is known which models the backends of a route have, after `models` was called."""
        return not is_glob(route.model) or any(self._offers.get(target.name) for target in route.targets)

    async def _list_models(self) -> Mapping[str, Route]:
        targets = {target.name: target for _, route in self._routes for target in route.targets}
        offers = await asyncio.gather(*(self._models_of(target) for target in targets.values()))
        exact = [route.model for _, route in self._routes if not is_glob(route.model)]
        listed = {model: self.route_of(model) for model in exact}
        for target, models in zip(targets.values(), offers, strict=True):
            for model in models:
                if (route := self._served_by(target, model)) is not None:
                    listed[model] = route
        return listed

    def _served_by(self, target: Backend, model: str) -> Route | None:
        """The route that sends a model to this target, if one does."""
        try:
            route = self.route_of(model)
        except UnknownModel:
            return None
        return route if target in route.targets else None

    async def _models_of(self, target: Backend) -> Sequence[str]:
        """The models that a target lists; while it cannot be reached, those that it listed last."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                self._offers[target.name] = await target.models()
        except (BackendError, TimeoutError):
            pass
        return self._offers.get(target.name, ())
