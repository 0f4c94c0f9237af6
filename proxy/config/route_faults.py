"""Checks of the [[route]] tables of a config. Each function yields sentences that begin with a key's path."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from backends import Backend
from policies.support.globs import covers, is_glob
from proxy.config.schema import RouteTable
from proxy.config.validation import no_such


def route_faults(
    routes: Mapping[int, RouteTable], backends: Mapping[str, Backend], faulty: Collection[str]
) -> Iterator[str]:
    """Routes to unknown backends, routes that no call reaches, backends that cannot take each other's place.

    `faulty` are the names of backends that could not be read, and of routes.
    """
    fallbacks = {fallback.route for route in routes.values() for fallback in route.fallback}
    for index, route in routes.items():
        yield from _backend_faults(f"route[{index}]", route, backends, faulty)
        if route.shown_name in fallbacks:
            continue  # it may be there for that only
        for before, earlier in routes.items():
            if before < index and covers(earlier.model, route.model):
                found = f"'{route.model}' is never reached, because route[{before}] has '{earlier.model}'"
                yield f"route[{index}].model: {found}; put it before that one"
                break
    yield from _default_faults(routes, backends)
    yield from _fallback_faults(routes, backends, faulty)


def _backend_faults(
    path: str, route: RouteTable, backends: Mapping[str, Backend], faulty: Collection[str]
) -> Iterator[str]:
    """No backend or an unknown one, one that is listed twice, weights without effect, and pools that do not fit."""
    key = "backends" if route.backends else "backend"
    if route.backend and route.backends:
        yield f"{path}.backends: give either backend or backends"
    if not route.backend_names:
        yield f"{path}.backend: missing; name a [[backend]]"
    for name in route.backend_names:
        if name not in backends and name not in faulty:
            yield f"{path}.{key}: {no_such('backend', name, [*backends, *faulty])}"
    for name, count in Counter(route.backends).items():
        if count > 1:
            yield f"{path}.backends: '{name}' is listed {count} times"
    yield from _weight_faults(path, route)
    if route.hedge_after_ms is not None and len(route.backend_names) == 1:
        yield f"{path}.hedge_after_ms: it has no effect with one backend"
    named = [backends[name] for name in route.backend_names if name in backends]
    for other in named[1:]:
        if found := _difference(named[0], other):
            yield f"{path}.backends: '{named[0].name}' and '{other.name}' cannot take each other's place: {found}"


def _weight_faults(path: str, route: RouteTable) -> Iterator[str]:
    if route.weights and route.strategy != "weighted":
        yield f'{path}.weights: they have no effect with strategy = "{route.strategy}"'
    if route.affinity_max_per_min is not None and route.strategy != "affinity":
        yield f'{path}.affinity_max_per_min: it has no effect with strategy = "{route.strategy}"'
    for name in route.weights:
        if name not in route.backend_names:
            yield f"{path}.weights: '{name}' is none of its backends"


def _difference(one: Backend, other: Backend) -> str | None:
    """What keeps a backend from answering in place of another: a call is completed for one kind of them."""
    if one.keeps_state != other.keeps_state:
        return "keeps_state differs"
    return "one of them compacts conversations itself" if one.compacts != other.compacts else None


def _default_faults(routes: Mapping[int, RouteTable], backends: Mapping[str, Backend]) -> Iterator[str]:
    """More than one default route, and one without a model."""
    defaults = [index for index, route in routes.items() if route.default]
    for index in defaults[1:]:
        yield f"route[{index}].default: route[{defaults[0]}] is the default already; keep one"
    for index in defaults:
        model = routes[index].model
        for backend in (backends[name] for name in routes[index].backend_names if name in backends):
            if backend.needs_model and is_glob(model):
                yield f"route[{index}].default: '{backend.name}' needs a model's name, and '{model}' has wildcards"


def _fallback_faults(
    routes: Mapping[int, RouteTable], backends: Mapping[str, Backend], faulty: Collection[str]
) -> Iterator[str]:
    """Fallbacks to unknown, ambiguous and unfit routes, and to the route itself."""
    names = Counter(route.shown_name for route in routes.values())
    by_name = {route.shown_name: route for route in routes.values()}
    for index, route in routes.items():
        for position, fallback in enumerate(route.fallback):
            path, name = f"route[{index}].fallback[{position}]", fallback.route
            if name == route.shown_name:
                yield f"{path}.route: it is this route itself"
            elif not names[name] and name in faulty:
                continue
            elif not names[name]:
                yield f"{path}.route: {no_such('route', name, names)}"
            elif names[name] > 1:
                yield f"{path}.route: there are {names[name]} routes called '{name}'; give each a name of its own"
            elif found := _unfit(route, by_name[name], backends):
                yield f"{path}.route: '{name}' cannot take its place: {found}"


def _unfit(route: RouteTable, fallback: RouteTable, backends: Mapping[str, Backend]) -> str | None:
    for one in route.backend_names[:1]:
        for other in fallback.backend_names[:1]:
            if one in backends and other in backends:
                return _difference(backends[one], backends[other])
    return None
