"""Config -> the server, its endpoints, and its health report. Nothing is started here."""

from proxy.config.build import Config
from proxy.http.admission import connection_limit
from proxy.http.client_address import ClientAddresses
from proxy.http.cross_origin import CrossOrigin
from proxy.http.dispatch import LOOPBACK_NAMES, Dispatcher, host_name
from proxy.http.health import Health
from proxy.http.ingress import Ingress
from proxy.http.models import ModelEndpoints
from proxy.http.relay import RelayEndpoints, hint
from proxy.http.resources import ResourceEndpoints
from proxy.http.responses import Responses
from proxy.http.router import Endpoint, Router
from proxy.http.send import Heartbeats
from proxy.http.server import Server
from proxy.http.usage import UsageEndpoint
from proxy.http.websocket.endpoint import WebSocketEndpoint
from proxy.http.welcome import Welcome
from proxy.pipeline import Pipeline
from proxy.process_state import ProcessState
from proxy.relays import Relays
from proxy.state.relayed_answers import RelayedAnswers
from proxy.state.relayed_ids import RelayedIds
from proxy.wire.headers import DEFAULT_HEADERS
from proxy.workers import Workers


def build_dispatcher(config: Config, pipeline: Pipeline, process: ProcessState, health: Health) -> Dispatcher:
    """Connect everything that answers requests; nothing is started."""
    rules, directory = pipeline.rules, process.directory
    names = DEFAULT_HEADERS.union(backend.header_names for backend in config.backends.values())
    heartbeats = Heartbeats(config.server.keep_alive_s)
    ingress = Ingress(directory, config.server, process.memory, process.workers, rules.followed, heartbeats, names)
    relays = _relays(config, pipeline)
    websocket = WebSocketEndpoint(ingress, pipeline, process.held, process.sockets)
    clients = ClientAddresses(config.server.trusted_proxies)
    router = Router(
        [
            *Responses(ingress, pipeline).endpoints(),
            *ResourceEndpoints(ingress, pipeline.resources).endpoints(),
            Endpoint("GET", "/v1/responses", websocket.connect),
            *ModelEndpoints(directory, pipeline.routes, rules).endpoints(),
            *UsageEndpoint(directory, rules, config.state, config.usage).endpoints(),
            *Welcome(config, clients).endpoints(),
            Endpoint("GET", "/healthz", health.alive),
            Endpoint("GET", "/readyz", health.ready),
            *RelayEndpoints(ingress, relays).of(config.relays),
        ],
        hint(relay.path for relay in config.relays),
    )
    calls = process.calls if config.has_teams else None
    return Dispatcher(
        router,
        _hosts(config),
        is_open=config.is_open,
        spans=process.spans,
        calls=calls,
        finished=process.finished,
        usage=process.usage,
        traces=config.trace,
        trusts_traceparent=config.server.trust_traceparent,
        clients=clients,
        cross_origin=CrossOrigin(config.server.cors_origins),
        contact=config.server.contact,
        starts=process.workers.starts,
        team_of=directory.team_of if config.has_teams else None,
    )


def max_calls(config: Config) -> int:
    """Return how many calls there may be at once: as many as connections."""
    return config.server.max_connections or connection_limit()


def _relays(config: Config, pipeline: Pipeline) -> Relays:
    denies, ownership = config.unknown_ids == "deny", pipeline.ownership
    ids, answers = RelayedIds(ownership, denies_unknown=denies), RelayedAnswers(ownership, denies_unknown=denies)
    return Relays(pipeline.rules, ids, answers, config.backends, pipeline.attempts.targets.prices)


def build_health(config: Config, pipeline: Pipeline, process: ProcessState) -> Health:
    """Return what reports liveness and readiness. Once the process begins to end /readyz says so."""
    audit, recorder = process.audit, process.recorder
    files = {name: file for name, file in (("audit", audit), ("record", recorder)) if file is not None}
    stores = {"state": config.state} | ({} if config.cache_store is None else {"cache": config.cache_store})
    needs_state = any(rule.needs_state for rule in config.rules)
    return Health(
        config.backends, stores, files, pipeline.attempts.targets, process.ending,
        identities=process.directory.report, required=frozenset({"state"} if needs_state else ()),
    )  # fmt: skip


def build_server(config: Config, dispatcher: Dispatcher, workers: Workers) -> Server:
    """Return a server that is not started."""
    settings = config.server
    return Server(
        dispatcher,
        head_timeout_s=settings.head_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        max_connections=max_calls(config),
        max_body_bytes=settings.max_body_bytes,
        max_head_bytes=settings.max_head_bytes,
        pace=workers.pace,
        evicts_idle=config.has_teams,
    )


def _hosts(config: Config) -> frozenset[str]:
    """The Host names that are served, in lower case and without ports; empty: any."""
    return frozenset(map(host_name, config.server.hosts)) or (LOOPBACK_NAMES if config.is_open else frozenset())
