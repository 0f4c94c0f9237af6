"""The route of a call that names what a backend keeps: the call goes to that backend, if it serves the model.

responses, conversations           kept by their backend; the gateway's own by any backend that keeps no state
files, stores, containers, skills  kept by the upstream that created them; a local model looks none of them up
items                              preferred only: a conversation may bring items of other backends along

Only targets that can resolve what the call names remain, and only fallback routes all of whose targets can. If all can,
the one that answered before is preferred, as it may have the prompt in its cache. An id without a known owner goes to
the first target. A response that only a WebSocket connection keeps is continued with all of its items, so any target
can answer; the stored response before those items, if there is one, decides.
"""

from collections.abc import Mapping, Sequence

from backends import Backend
from proxy.context import Context
from proxy.lane import LANE_CALL
from proxy.routing.routes import Route, Routes
from proxy.state.references import KeptReference, Kind, continued
from proxy.wire.call import Call
from proxy.wire.errors import RequestError
from proxy.wire.refusals import shorten

Kept = tuple[KeptReference, Backend]
"""An id, and the backend that keeps the object."""
CONTINUED: frozenset[Kind] = frozenset({"response", "conversation"})


def match_keepers(
    call: Call, kept: Sequence[KeptReference], routes: Routes, backends: Mapping[str, Backend], *,
    is_whole: bool = False,
) -> Route:  # fmt: skip
    """Return the first route of a call's model with a target that can resolve what the call names.

    `is_whole` is whether all items that the call continues are sent along: its connection keeps them.
    A reference to a backend that is no longer configured decides nothing. Raises UnknownModel, and RequestError if no
    route of the model leads to what the call names.
    """
    candidates = routes.matching(call)
    known = [(reference, backends[reference.target]) for reference in kept if reference.target in backends]
    if not known:
        first = candidates[0]
        is_unknown = first.keeps_state and not is_whole and continued(call.body)
        return first.narrowed_to(first.targets[:1]) if is_unknown else first
    binding = [pair for pair in known if pair[0].kind != "item"]
    for wanted in (known, binding):
        for route in candidates:
            if targets := _targets_resolving(route.targets, wanted):
                return _narrow(route, targets, wanted)
    target = candidates[0].targets[0]
    raise _kept_elsewhere(call, next((pair[0] for pair in binding if not _resolves(target, *pair)), binding[0][0]))


def follow_connection(call: Call, route: Route, backends: Mapping[str, Backend], context: Context) -> Route:
    """Return the route of a call in WebSocket mode: with the target first whose connection has what the call continues.

    A call whose reply a backend has begun before the call was made leads there only.
    """
    lane_call = context.get(LANE_CALL)
    if lane_call is None:
        return route
    if lane_call.begun_by is not None:
        return route.narrowed_to([backends[lane_call.begun_by]])
    name = lane_call.connection.backend_of(call.body.get("previous_response_id"))
    preferred = next((target for target in route.targets if target.name == name), None)
    return route if preferred is None or len(route.targets) == 1 else route.preferring(preferred)


def _narrow(route: Route, targets: Sequence[Backend], wanted: Sequence[Kept]) -> Route:
    """Return a route with these of its targets, and the fallbacks that can take their place."""
    fallbacks = [
        fallback for fallback in route.fallbacks
        if len(_targets_resolving(fallback.route.targets, wanted)) == len(fallback.route.targets)
    ]  # fmt: skip
    if len(targets) < len(route.targets) or len(fallbacks) < len(route.fallbacks):
        route = route.narrowed_to(targets, fallbacks)
    if len(targets) > 1 and wanted and (keeper := wanted[0][1]) in targets:
        return route.preferring(keeper)
    return route


def _targets_resolving(targets: Sequence[Backend], wanted: Sequence[Kept]) -> Sequence[Backend]:
    return [target for target in targets if all(_resolves(target, *pair) for pair in wanted)]


def _resolves(target: Backend, reference: KeptReference, keeper: Backend) -> bool:
    """Whether this target can resolve what the keeper has."""
    if reference.kind not in CONTINUED:
        return keeper.shares_objects(target) or (reference.kind != "item" and not target.can_relay)
    if target.keeps_state and keeper.keeps_state:
        return keeper.shares_objects(target)
    return target.keeps_state == keeper.keeps_state


def _kept_elsewhere(call: Call, reference: KeptReference) -> RequestError:
    """Return the error for a call whose model is not served by the backend that keeps what it names."""
    kind = reference.kind.replace("_", " ")
    message = (
        f"The {kind} '{shorten(reference.id)}' is kept by a backend that does not serve the model "
        f"'{shorten(call.model)}'. Use a model of that backend, or send the content in place of the id."
    )
    return RequestError(message, code="kept_elsewhere", param=reference.param)
