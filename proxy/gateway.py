"""Serves one config after another: new calls use the new one, running calls end on the one that they began with.

Each config has a generation: the path of a call, and the backends and the cache's store that it needs. Those that do
not change are the same objects in the next generation. A generation is closed when no call runs on it any more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from backends import Backend
from proxy.admin.observer import Observer
from proxy.cache.cache import Cache
from proxy.composition import build_pipeline
from proxy.config.build import Config
from proxy.config.replacement import changes_between, has_other_cache, keep_process_state
from proxy.config.validation import ConfigError
from proxy.context import Caller
from proxy.http.assembly import build_dispatcher, build_health, max_calls
from proxy.http.dispatch import Dispatcher
from proxy.http.health import Health, Report
from proxy.identity.directory import fingerprint
from proxy.pipeline import Pipeline
from proxy.process_state import ProcessState
from proxy.shares import Shares
from proxy.stores import Store
from proxy.wire.loggable import printable

log = structlog.get_logger()

ReadAgain = Callable[[Config], Config]
"""Reads the config, and reuses unchanged parts of the running one. Raises ConfigError."""
LAST_JOBS_S = 86_400.0
"""How long background responses of a replaced config may continue, in seconds."""
IN_FLIGHT_CHECK_S = 0.1
MAX_CHANGES_CHARS = 4096
"""The most characters of a config's changes that are written to the audit."""


@dataclass(frozen=True, slots=True)
class ConfigGeneration:
    """The objects that serve one config."""

    config: Config
    pipeline: Pipeline
    dispatcher: Dispatcher
    health: Health

    @property
    def parts(self) -> Iterator[Backend | Store]:
        """Its parts that have to be started and closed."""
        yield from self.config.backends.values()
        if self.config.cache_store is not None:
            yield self.config.cache_store


@dataclass(frozen=True, slots=True)
class PreparedReload:
    """A generation that is started and not served yet, and its changes."""

    generation: ConfigGeneration | None
    """None if nothing has changed."""
    changes: list[str]
    undo: AsyncExitStack
    """Closes what only this generation needs."""


class Gateway:
    """The generation that new calls use, and older ones that still have calls."""

    current: ConfigGeneration

    def __init__(self, process: ProcessState, observer: Observer | None = None) -> None:
        self.reloads: Counter[str] = Counter()
        """The number of reloads by outcome."""
        self.on_switch: Callable[[ConfigGeneration], None] = lambda _: None
        """Called with the generation that new calls use from now on."""
        self._process = process
        self._observer = observer
        self._generations: list[ConfigGeneration] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._prepared: PreparedReload | None = None
        self._lock = asyncio.Lock()

    async def start(self, config: Config) -> None:
        """Serve a first config. Raises ValueError or OSError if a backend or a store cannot start."""
        new, _ = await self._start_parts(config)
        self._switch(new)

    async def reload(self, read: ReadAgain) -> list[str]:
        """Read and serve the config; return what has changed. A fault changes nothing.

        Raises ConfigError, and ValueError or OSError if a backend or a store cannot start.
        """
        async with self._lock:
            prepared = await self._prepare(read)
            self._serve(prepared)
            return prepared.changes

    async def prepare(self, read: ReadAgain) -> list[str]:
        """Read the config and start its parts, for `commit`; return what has changed. Raises as `reload`."""
        async with self._lock:
            await self._close_prepared()
            self._prepared = await self._prepare(read)
            return self._prepared.changes

    async def commit(self) -> None:
        """Serve the prepared generation."""
        async with self._lock:
            if self._prepared is not None:
                self._serve(self._prepared)
                self._prepared = None

    async def discard(self, reason: str) -> None:
        """Close the prepared generation, as another process cannot serve the config."""
        async with self._lock:
            self._fail(reason)
            await self._close_prepared()

    async def preview(self, read: ReadAgain) -> list[str]:
        """Return what a reload would change. Raises ConfigError, ValueError, OSError."""
        running = self.current.config
        new = await asyncio.to_thread(read, running)
        keep_process_state(running, new)
        return changes_between(running, new)

    async def _prepare(self, read: ReadAgain) -> PreparedReload:
        running = self.current.config
        try:
            new = await asyncio.to_thread(read, running)
            changes = changes_between(running, new)
            merged = keep_process_state(running, new)
            generation, undo = await self._start_parts(merged) if changes else (None, AsyncExitStack())
        except (ConfigError, ValueError, OSError) as error:
            self._fail(str(error))
            raise
        return PreparedReload(generation, changes, undo)

    def _fail(self, reason: str) -> None:
        self.reloads["failed"] += 1
        log.error("config.reload_failed", reason=reason)

    def _serve(self, prepared: PreparedReload) -> None:
        if prepared.generation is not None:
            self._switch(prepared.generation)
        self.reloads["succeeded"] += 1
        log.info("config.reloaded", changes=prepared.changes)
        if prepared.generation is not None:
            self._report(prepared.generation.config, prepared.changes)

    async def _close_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared.undo.aclose()

    def _report(self, config: Config, changes: Sequence[str]) -> None:
        """Log what has no effect in a new config, and record that it is served and what it has changed.

        The hash of its file alone would not tell that a secret was replaced which the file names.
        """
        for warning in config.warnings:
            log.warning("config.warned", reason=warning)
        if self._process.audit is not None and config.digest is not None:
            changed = printable("; ".join(changes), MAX_CHANGES_CHARS)
            self._process.audit.write_event("config.loaded", {"config_sha256": config.digest, "changes": changed})

    async def report(self) -> Report:
        """Return what /readyz answers."""
        return await self.current.health.report()

    async def close_backgrounds(self, drain_s: float) -> None:
        """Let background responses continue for a time, then end them."""
        await asyncio.gather(*(each.pipeline.background.close(drain_s) for each in self._generations))

    async def close(self) -> None:
        """Close everything that generations need."""
        for task in [*self._retiring]:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._close_prepared()
        while self._generations:
            await self._close(self._generations[-1])

    async def _start_parts(self, config: Config) -> tuple[ConfigGeneration, AsyncExitStack]:
        """Return a generation that is ready to serve, and the stack that closes it. Raises ValueError or OSError."""
        old = self._generations[-1] if self._generations else None
        used = [part for generation in self._generations for part in generation.parts]
        async with AsyncExitStack() as undo:
            new = self._build(config, old)
            if old is None or new.pipeline.cache is not old.pipeline.cache:
                undo.push_async_callback(new.pipeline.cache.close)
            for part in new.parts:
                if not any(part is other for other in used):
                    await part.start()
                    undo.push_async_callback(part.close)
            return new, undo.pop_all()

    def _switch(self, new: ConfigGeneration) -> None:
        """Serve a generation from now on."""
        old, config = self._generations[-1] if self._generations else None, new.config
        self._process.targets.prefetch_prices(config.routes)
        if self._process.directory.sign_in is not None:
            self._process.directory.sign_in.replace(config.issuers)
        self._process.directory.replace(
            callers_by_digest(config), config.teamless_callers, has_issuers=bool(config.issuers)
        )
        self._set_teams(config)
        self._generations.append(new)
        self.current = new
        self.on_switch(new)
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _build(self, config: Config, old: ConfigGeneration | None) -> ConfigGeneration:
        process = self._process
        cache = self._cache(config) if old is None or has_other_cache(old.config, config) else old.pipeline.cache
        pipeline = build_pipeline(config, process, cache)
        if old is not None:
            pipeline.rules.decisions.counts = old.pipeline.rules.decisions.counts
        health = build_health(config, pipeline, process)
        if config.has_teams and process.calls is None:
            process.calls = Shares(max_calls(config), has_teams=True)
        return ConfigGeneration(config, pipeline, build_dispatcher(config, pipeline, process, health), health)

    def _cache(self, config: Config) -> Cache:
        observer, store = self._observer, config.cache_store
        return Cache(config.cache, store if store is None or observer is None else observer.measured(store, "cache"))

    def _set_teams(self, config: Config) -> None:
        for shares in (self._process.memory, self._process.held, self._process.targets):
            shares.set_teams(has_teams=config.has_teams)

    async def _retire(self, old: ConfigGeneration) -> None:
        """Close a generation when its last call has ended, and what its cache or another call still asks of it."""
        await old.dispatcher.load.wait()
        await old.pipeline.background.close(LAST_JOBS_S)
        while any(map(self._process.targets.in_flight, self._own_backends(old))):  # noqa: ASYNC110  rare, and no event
            await asyncio.sleep(IN_FLIGHT_CHECK_S)
        await self._close(old)

    def _own_backends(self, generation: ConfigGeneration) -> Iterator[Backend]:
        others = [part for each in self._generations if each is not generation for part in each.parts]
        for backend in generation.config.backends.values():
            if not any(backend is other for other in others):
                yield backend

    async def _close(self, generation: ConfigGeneration) -> None:
        """Close what no other generation needs."""
        await generation.pipeline.rules.close()
        generation.pipeline.rules.decisions.log_summary()
        self._generations.remove(generation)
        needed = [part for each in self._generations for part in each.parts]
        if not any(each.pipeline.cache is generation.pipeline.cache for each in self._generations):
            await generation.pipeline.cache.close()
        for part in generation.parts:
            if not any(part is other for other in needed):
                self._process.targets.forget(part)
                await part.close()


def callers_by_digest(config: Config) -> Mapping[bytes, Caller]:
    """Return the callers of a config by the SHA-256 of their keys."""
    return {
        caller.digest: Caller(caller.name, caller.team, fingerprint=fingerprint(caller.digest))
        for caller in config.callers
    }
