"""model -> Backend."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from fnmatch import translate

from cachetools import TTLCache

from backends import Backend
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, UnknownModel

LISTED_FOR_S = 60


class Routes:
    """The routes in the order of the config; the first that matches a model's name wins."""

    def __init__(self, routes: Sequence[tuple[str, Backend]]) -> None:
        self._routes = [(glob, re.compile(translate(glob)), backend) for glob, backend in routes]
        self._listed: TTLCache[str, Mapping[str, Backend]] = TTLCache(1, LISTED_FOR_S)

    def backend_for(self, call: Call) -> Backend:
        """Raises UnknownModel."""
        return self._backend_of(call.model)

    def _backend_of(self, model: str) -> Backend:
        for _, pattern, backend in self._routes:
            if pattern.match(model):
                return backend
        raise UnknownModel(model)

    async def models(self) -> Mapping[str, Backend]:
        """Every model that can be asked for by name: those that routes spell out, and of `*` what its backend lists."""
        listed = self._listed.get("models")
        if listed is None:
            spelt = [glob for glob, _, _ in self._routes if not re.search(r"[*?\[]", glob)]
            backends = {backend.name: backend for _, _, backend in self._routes}
            offered = await asyncio.gather(*(self._offered(backend) for backend in backends.values()))
            listed = {model: self._backend_of(model) for model in spelt}
            for backend, models in zip(backends.values(), offered, strict=True):
                for model in models:
                    if self._serves(backend, model):
                        listed[model] = backend
            self._listed["models"] = listed
        return listed

    def _serves(self, backend: Backend, model: str) -> bool:
        try:
            return self._backend_of(model) is backend
        except UnknownModel:
            return False

    @staticmethod
    async def _offered(backend: Backend) -> Sequence[str]:
        try:
            return await backend.models()
        except BackendError:
            return ()  # a backend that is away hides its own models, not those of the others
