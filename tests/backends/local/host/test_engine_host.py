"""One engine for several workers: each has a connection of its own, as to its supervisor."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backends.local import Local
from backends.local.decoding.job import DecodingOptions, Token
from backends.local.host import engine_host
from backends.local.host.engine import Generation
from backends.local.host.engine_host import EngineHost
from backends.local.host.ipc import Channel, IpcError, encode_message
from backends.local.host.remote_engine import EngineLink, RemoteEngine
from backends.local.host.shared_messages import EngineOrder, decode_error, encode_error
from backends.local.model import read_model
from backends.local.scheduling.admission import busy_error
from proxy.wire.errors import BackendError, RequestError
from tests.backends.local.conftest import engine_processes, until
from tests.timeouts import TIMEOUT_S

PROMPT = [3, 4, 5]


class Worker:
    """A worker process as the host sees it."""

    def __init__(self, link: EngineLink, serving: asyncio.Task[None]) -> None:
        self.link, self.serving = link, serving

    async def open(self, folder: Path, **keys: Any) -> RemoteEngine:
        return await RemoteEngine.open(self.link, order_of(folder, **keys))

    async def kill(self) -> None:
        """End the connection without a word, as SIGKILL does."""
        self.link.channel.close()
        await self.serving


def order_of(folder: Path, **keys: Any) -> EngineOrder:
    keys = {"name": "local", "path": folder, "workers": 1, "kv_bytes": 10**10, "max_output_tokens": 10**6} | keys
    return Local(**keys).order(read_model(folder))


def options(tokens: int = 16) -> DecodingOptions:
    return DecodingOptions(tokens, frozenset())


async def answer(engine: RemoteEngine, team: str = "red", tokens: int = 16) -> list[int]:
    async with engine.generate(PROMPT, options(tokens), team=team) as generation:
        return [token.id async for tokens in generation for token in tokens]


@asynccontextmanager
async def endless_answer(engine: RemoteEngine, team: str = "red") -> AsyncIterator[Generation]:
    """Begin an answer that does not end by itself."""
    async with engine.generate(PROMPT, options(500_000), team=team) as generation:
        await anext(generation)
        yield generation


async def drain(generation: Generation) -> None:
    async for _ in generation:
        pass


@pytest.fixture
async def host() -> AsyncIterator[EngineHost]:
    host = EngineHost()
    yield host
    await host.close()

    assert engine_processes() == []


@pytest.fixture
async def connect(host: EngineHost) -> AsyncIterator[Callable[[], Awaitable[Worker]]]:
    """Connect workers to the host."""
    workers: list[Worker] = []

    async def begin() -> Worker:
        own, other = socket.socketpair()
        serving = asyncio.create_task(host.serve(own))
        workers.append(Worker(EngineLink(await Channel.open(other)), serving))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.link.channel.close()
        with suppress(IpcError):
            await worker.serving


async def test_workers_share_one_engine(folder: Path, connect):
    """The model is loaded once, also when it is ordered by both at the same time; it ends with the last of them."""
    workers = [await connect(), await connect()]
    first, second = await asyncio.gather(*(worker.open(folder) for worker in workers))
    (number,) = engine_processes()
    answers = await asyncio.gather(*(answer(engine) for engine in (first, second) for _ in range(10)))
    await first.close()
    with pytest.raises(BackendError, match="was stopped"):
        await answer(first)
    kept = engine_processes()
    again = await answer(second)
    await second.close()
    await until(lambda: not engine_processes())

    assert answers == [again] * 20
    assert (len(again), kept, first.workers, first.device) == (16, [number], 1, "cpu")


async def test_steps_wake_no_task_between_the_engine_and_the_answer(endless: Path, connect, monkeypatch):
    """Neither one that reads messages, nor that of the job in the host."""
    wakes = Counter[str]()

    def count(owner: type, name: str) -> None:
        called = getattr(owner, name)

        async def counting(self: object) -> object:
            wakes[name] += 1
            return await called(self)

        monkeypatch.setattr(owner, name, counting)

    engine = await (await connect()).open(endless)
    count(Channel, "receive")
    count(Generation, "__anext__")
    forwarded: list[Token] = []
    async with engine.generate(PROMPT, options(1000)) as generation:
        generation.forward_tokens(lambda tokens: forwarded.extend(tokens) is None)
        received = [token async for tokens in generation for token in tokens]

    assert len(forwarded) + len(received) == 1000
    assert len(forwarded) > 900
    assert wakes.total() < 50


async def test_tokens_that_are_held_back_come_as_they_are_there_once_that_is_asked_for(endless: Path, connect):
    """At first all of those of a quarter of a second come together: some hundreds."""
    engine = await (await connect()).open(endless)
    held = replace(options(500_000), delivers_at_once=False)
    async with engine.generate(PROMPT, held) as generation:
        together = [len(await anext(generation)) for _ in range(3)]
        generation.deliver_at_once()
        at_once = [len(await anext(generation)) for _ in range(20)]

    assert min(at_once) < 10 < max(together)


async def test_one_queue_admits_the_jobs_of_all_workers(endless: Path, connect):
    """The places are those of the engine, not of each worker; a refusal is that of a gateway of one process."""
    engines = [await (await connect()).open(endless, max_waiting=1) for _ in range(2)]
    async with endless_answer(engines[0]), engines[1].generate(PROMPT, options(), team="red"):
        for engine in engines:
            with pytest.raises(BackendError) as refused:
                await answer(engine)

            assert (refused.value.status, refused.value.code, refused.value.type) == (
                429,
                "local_model_busy",
                "requests",
            )
            assert refused.value.headers["Retry-After"]


async def test_teams_take_turns_across_workers(endless: Path, connect):
    """A team whose only job comes last, by another worker, is next."""
    engines = [await (await connect()).open(endless) for _ in range(2)]
    order, alone, admitted = list[str](), replace(options(), top_logprobs=1), asyncio.Semaphore(0)

    async def ask(engine: RemoteEngine, team: str) -> None:
        async with engine.generate(PROMPT, alone, team=team) as generation:
            admitted.release()
            await drain(generation)
        order.append(team)

    async with asyncio.TaskGroup() as calls, endless_answer(engines[0]):
        for engine, team in [(engines[0], "red")] * 4 + [(engines[1], "blue")]:
            calls.create_task(ask(engine, team))
            await admitted.acquire()

    assert order == ["blue", "red", "red", "red", "red"]


async def test_a_crash_fails_the_running_answers_of_all_workers(endless: Path, connect, logged):
    """They all notice; later calls wait for the next process."""
    engines = [await (await connect()).open(endless) for _ in range(2)]
    (number,) = engine_processes()
    async with endless_answer(engines[0]) as first, engines[1].generate(PROMPT, options(500_000)) as second:
        os.kill(number, signal.SIGKILL)
        errors = []
        for generation in (first, second):
            with pytest.raises(BackendError) as failed:
                await drain(generation)
            errors.append((failed.value.status, failed.value.code, failed.value.retryable))
        were_running = [engine.is_running for engine in engines]
        answers = [await answer(engine) for engine in engines]

    assert errors == [(502, "local_model_failed", True)] * 2
    assert (were_running, [engine.is_running for engine in engines]) == ([False] * 2, [True] * 2)
    assert [len(each) for each in answers] == [16, 16]
    assert [line["event"] for line in logged if line["event"].startswith("engine.")] == [
        "engine.exited",
        "engine.restarted",
    ]


async def test_the_jobs_of_a_killed_worker_end_with_it(endless: Path, connect):
    """At once: the only worker of the engine is free. The engine stays for the process that replaces it."""
    victim, other = await connect(), await connect()
    lost, kept = await victim.open(endless), await other.open(endless)
    numbers = engine_processes()
    async with endless_answer(lost) as generation:
        await victim.kill()
        found = await answer(kept)
        with pytest.raises(BackendError, match="was stopped"):
            await drain(generation)
    await kept.close()
    replaced = await (await connect()).open(endless)

    assert (len(found), len(await answer(replaced)), engine_processes()) == (16, 16, numbers)
    assert not lost.is_running


async def test_an_engine_without_workers_is_closed_a_while_later(folder: Path, connect, monkeypatch):
    """No process takes the place of the killed ones."""
    monkeypatch.setattr(engine_host, "LINGER_S", 0.05)
    worker = await connect()
    await worker.open(folder)
    await worker.kill()
    await until(lambda: not engine_processes())


async def test_an_answer_that_is_left_ends_in_the_engine(endless: Path, connect):
    """The next one has its place, whether it is left while it runs or while it waits."""
    engine = await (await connect()).open(endless)
    for _ in range(3):
        async with endless_answer(engine):
            waiting = asyncio.create_task(answer(engine))
            await asyncio.sleep(0)
            waiting.cancel()

    assert len(await answer(engine)) == 16


async def test_tables_that_differ_are_engines_of_their_own(folder: Path, connect):
    """A reload replaces a model whose table has changed, and keeps one that has not."""
    worker = await connect()
    old = await worker.open(folder)
    same, new = await worker.open(folder), await worker.open(folder, max_waiting=7)
    both = len(engine_processes())
    await old.close()
    kept = len(engine_processes())
    await same.close()
    await until(lambda: len(engine_processes()) == 1)

    assert (both, kept, len(await answer(new))) == (2, 2, 16)


async def test_a_model_that_cannot_be_used_is_refused(folder: Path, tmp_path: Path, connect):
    """As it is without workers: with its reason, to each that asks, and the next one tries again."""
    worker, order = await connect(), order_of(folder)
    broken = replace(order, spec=replace(order.spec, path=str(tmp_path)))
    too_large = replace(order, key="l", settings=replace(order.settings, memory_bytes=1))
    for kind, message, each in ((OSError, "No such file", broken), (ValueError, "memory_bytes is 1", too_large)):
        for _ in range(2):
            with pytest.raises(kind, match=message):
                await RemoteEngine.open(worker.link, each)
    engine = await RemoteEngine.open(worker.link, order)
    with pytest.raises(OSError, match="has changed since it was loaded"):
        await RemoteEngine.open(worker.link, replace(order, spec=replace(order.spec, vocabulary_size=9)))
    with pytest.raises(ValueError, match="at least two tokens"):
        await answer_to(engine, [1])
    with pytest.raises(RequestError, match="the limit is"):
        await answer_to(engine, [10] * 12_000_000)

    assert len(await answer(engine)) == 16


@pytest.mark.parametrize("is_broken", [False, True])
async def test_an_opening_that_was_cancelled_leaves_the_connection_as_it_is(
    folder: Path, tmp_path: Path, connect, is_broken: bool
):
    """A worker ends a reload before the host answers: its other models are used on, and the engine is not kept."""
    worker, order = await connect(), order_of(folder)
    engine = await RemoteEngine.open(worker.link, order)
    other = replace(order, key="other", spec=replace(order.spec, path=str(tmp_path)) if is_broken else order.spec)
    opening = asyncio.create_task(RemoteEngine.open(worker.link, other))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await until(lambda: not worker.link.opening)
    answers = await asyncio.wait_for(answer(engine), TIMEOUT_S)
    await until(lambda: len(engine_processes()) == 1)

    assert (opening.cancelled(), len(answers)) == (True, 16)


@dataclass(frozen=True)
class NewerOptions(DecodingOptions):
    """Options as a worker of another version has them."""

    more: int = 0


async def test_a_job_that_the_host_cannot_read_fails(folder: Path, connect, logged):
    """It is answered like a failure of the model, which it is not: the next one is served."""
    engine = await (await connect()).open(folder)
    with pytest.raises(BackendError) as failed:
        async with engine.generate(PROMPT, NewerOptions(16, frozenset())):
            pass

    assert (failed.value.status, failed.value.code) == (502, "local_model_failed")
    assert len(await answer(engine)) == 16
    assert [line["event"] for line in logged] == ["generation.failed"]


async def answer_to(engine: RemoteEngine, prompt: list[int]) -> None:
    async with engine.generate(prompt, options()):
        pass


@pytest.mark.parametrize(
    "message",
    [["nothing"], ["job", 1, 9, "", [1, 2], {}], ["open", 1, {}], ["open", 1, {"key": "k", "spec": {"x": 1}}], 7],
    ids=str,
)
async def test_what_is_no_message_ends_the_connection(connect, message: Any):
    """The supervisor replaces that worker then."""
    worker = await connect()
    worker.link.channel.send(encode_message(*message) if isinstance(message, list) else b"7")

    with pytest.raises(IpcError):
        await worker.serving


@pytest.mark.parametrize("message", [["steps", 1], ["opened", 1, {}], ["state", 1, "yes"], ["nothing"]], ids=str)
async def test_a_worker_without_a_host_answers_nothing(folder: Path, message: list[Any]):
    """A host that sends what is no message is as good as none."""
    own, other = socket.socketpair()
    channel, link = await Channel.open(own), EngineLink(await Channel.open(other))
    opening = asyncio.create_task(RemoteEngine.open(link, order_of(folder)))
    await channel.receive()
    opened = {"device": "cpu", "compute_type": "int8", "workers": 1, "is_running": True}
    channel.send(encode_message("opened", 1, opened))
    engine = await opening
    channel.send(encode_message(*message))
    await until(lambda: not engine.is_running)

    with pytest.raises(BackendError, match="was stopped"):
        await answer(engine)
    await engine.close()
    channel.close()


def test_errors_are_the_same_on_both_sides():
    """With everything that an answer and a retry are made of."""
    errors = [
        busy_error("Full.", 7.2),
        BackendError("Failed.", code="local_model_failed", source="gateway", retryable=True, sent=False, reason="r"),
        RequestError("Too long.", code="local_model_memory", param="max_output_tokens"),
    ]

    for error in errors:
        found = decode_error(encode_error(error))
        assert (type(found), vars(found)) == (type(error), vars(error))
