"""Config -> the path of a call. Nothing is started here."""

from functools import partial

from backends import least_values_of
from policies import PolicyState
from proxy.cache.cache import Cache
from proxy.config.build import Config
from proxy.history import History
from proxy.pipeline import Pipeline
from proxy.process_state import ProcessState
from proxy.routing.attempts import Attempts
from proxy.routing.routes import Routes
from proxy.rules import Rules
from proxy.state.background import Background
from proxy.state.compaction import Compaction
from proxy.state.conversations import Conversations
from proxy.state.journal import Journals
from proxy.state.local_resources import LocalResources
from proxy.state.ownership import Ownership
from proxy.state.resources import Resources
from proxy.state.responses import StoredResponses
from proxy.stores import Store
from proxy.stores.memory import MemoryStore


def build_pipeline(config: Config, process: ProcessState, cache: Cache) -> Pipeline:
    """Return the pipeline with its steps, and the gateway's own state, connected."""
    content, ttl_s, sealing = process.content, config.state_ttl_s, process.sealing
    ownership = Ownership(config.state, ttl_s, allows_unknown=config.unknown_ids == "allow")
    seals = None if config.state_secret is None else sealing
    kept, conversations = StoredResponses(content, ttl_s, seals), Conversations(content, ttl_s, seals)
    routes = Routes(config.routes)
    least_values = least_values_of(config.backends.values())
    quote_of = partial(process.targets.quote_of, routes)
    count = config.server.worker_count
    state = PolicyState(config.state, ownership, least_values=least_values, quote_of=quote_of, workers=count)
    rules = Rules(config.rules, state, audit=process.audit, recorder=process.recorder)
    journals = Journals(content, config.state_settings.resume_window_s, seals)
    background = Background(config.state, journals, config.state_settings, rules, kept)
    local, targets = LocalResources(kept, conversations, background), process.targets
    resources = Resources(rules, ownership, routes, config.backends, local, cache.forget, targets)
    history = History(kept, conversations)
    return Pipeline(
        rules, ownership, routes, cache, history, Attempts(targets), resources, Compaction(sealing), background,
        log_metadata=config.server.log_metadata,
    )  # fmt: skip


def content_store(state: Store) -> Store:
    """Return the store of responses and conversations: that of [state], but in memory one of its own.

    A store in memory drops what was not used for long when it is full. A few large responses must not drop the owners
    of other teams' ids.
    """
    return MemoryStore.model_validate(state.model_dump()) if isinstance(state, MemoryStore) else state
