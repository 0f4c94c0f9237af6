"""GET /v1/models and /v1/models/{name}: the names that this caller may send."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from proxy.context import Caller
from proxy.http.exchange import Exchange
from proxy.http.router import Endpoint
from proxy.identity.directory import Directory
from proxy.routing.routes import Route, Routes
from proxy.rules import Rules
from proxy.wire.errors import UnknownModel
from proxy.wire.loggable import in_ascii


@dataclass(frozen=True, slots=True)
class ModelEndpoints:
    """Lists the models that can be named, and describes one."""

    directory: Directory
    routes: Routes
    rules: Rules

    def endpoints(self) -> Iterator[Endpoint]:
        yield Endpoint("GET", "/v1/models", self.list)
        yield Endpoint("GET", "/v1/models/{name*}", self.retrieve)

    async def list(self, exchange: Exchange) -> web.StreamResponse:
        models = await self._models(exchange.identify(self.directory))
        data = [_model(name, route.targets[0].name) for name, (_, route) in models.items()]
        return exchange.json_response({"object": "list", "data": data})

    async def retrieve(self, exchange: Exchange) -> web.StreamResponse:
        models = await self._models(exchange.identify(self.directory))
        name = unquote(exchange.head.found.values["name"])  # SDKs write acme%2Fsmall
        model, route = models[name] if name in models else self._unlisted(name, exchange.identify(self.directory))
        target = route.targets[0]
        return exchange.json_response({**_model(name, target.name), **await target.describe(model)})

    def _unlisted(self, name: str, caller: Caller) -> tuple[str, Route]:
        """Return the same of a name that a caller may send to a backend that lists no models. Raises UnknownModel."""
        model = self.rules.resolve_model(name, caller)
        route = None if model is None else self.routes.route_of(model)
        if model is None or route is None or self.routes.has_list(route):
            raise UnknownModel(in_ascii(name))
        return model, route

    async def _models(self, caller: Caller) -> Mapping[str, tuple[str, Route]]:
        """Return the names that a caller may send, each with the model that is sent on and its route."""
        found: dict[str, tuple[str, Route]] = {}
        for name in [*await self.routes.models(), *self.rules.model_names(caller)]:
            model = self.rules.resolve_model(name, caller)
            if name not in found and model is not None:
                with suppress(UnknownModel):
                    found[name] = model, self.routes.route_of(model)
        return found


def _model(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
