"""GET /v1/models and /v1/models/{name}."""

from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from proxy.http.errors import printable
from proxy.http.exchange import Exchange
from proxy.identity.directory import Directory
from proxy.routing.routes import Routes
from proxy.wire.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class ModelEndpoints:
    """Lists the models that can be named, and describes one."""

    directory: Directory
    routes: Routes

    async def list(self, exchange: Exchange) -> web.StreamResponse:
        exchange.identify(self.directory)
        models = await self.routes.models()
        data = [_model(name, route.targets[0].name) for name, route in models.items()]
        return exchange.json_response({"object": "list", "data": data})

    async def retrieve(self, exchange: Exchange) -> web.StreamResponse:
        exchange.identify(self.directory)
        name = unquote(exchange.path_values["name"])  # SDKs write acme%2Fsmall
        models = await self.routes.models()
        if name not in models:
            raise UnknownModel(printable(name))
        target = models[name].targets[0]
        return exchange.json_response({**_model(name, target.name), **await target.describe(name)})


def _model(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
