"""Worker processes behind one port: each accepts connections on a socket of its own, and the kernel distributes them.

The supervisor keeps all sockets open, so that connections wait for a worker that is restarted. One that ends is started
again, after a pause that grows; one that does not answer for HANG_S is killed. Signals are passed on.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from backends import ENGINES
from proxy.admin.listener import listening
from proxy.admin.processes import Processes
from proxy.config.build import Config
from proxy.control import CONTROL, LISTENER, NUMBER, SPOOL, TEXTS, Link, Questions
from proxy.early_start import was_hung_up
from proxy.http.health import Report
from proxy.http.listening import ADMIN, bind, open_listeners
from proxy.joint_reload import JointReload
from proxy.shared_engines import SharedEngines
from proxy.telemetry.instruments import Snapshot, decode, merge
from proxy.usage.spool import open_files
from proxy.worker_process import address_of

log = structlog.get_logger()

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""The pause before an ended worker is started again: the first one, and the longest."""
STEADY_S = 60.0
"""How long a worker must have run for the pause to be the first one again."""
PING_S, HANG_S = 2.0, 30.0
"""The interval of pings to a worker, and the time without an answer after which it is killed."""
ANSWER_S = 2.0
"""How long a worker may take to answer a question, in seconds; one that does not is left out."""
ADMIN_ANSWER_S = 20.0
"""The same for a question of the admin API: some read files, or the store."""
GRACE_S = 10.0
"""How much longer than `drain_s` workers may take to end, in seconds."""


@dataclass(slots=True)
class Worker:
    """One place for a worker process, and the process in it."""

    number: int
    listener: socket.socket
    spool: tuple[int, int] = field(default_factory=open_files)
    """Files with what its process has counted and not written yet, which outlive the process."""
    process: Process | None = None
    link: Link | None = None
    heard_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    serves: bool = False
    """Whether it has reported that it serves."""
    counted: Snapshot = field(default_factory=dict)
    """Its metrics when they were read last."""


class Supervisor:
    """Starts the workers of a config, and keeps them running until it is stopped."""

    def __init__(self, config: Config, command: Sequence[str], count: int) -> None:
        """`command` starts one worker. Raises OSError if the port is taken."""
        self._config = config
        self._command = command
        listeners = open_listeners(config.server.host, config.server.port, count)
        self._workers = [Worker(number, listener) for number, listener in enumerate(listeners, 1)]
        self._admin = [] if config.admin is None else bind(config.admin.host, config.admin.port, ADMIN)
        self._questions: dict[tuple[int, str], asyncio.Future[Any]] = {}
        self._asked = Questions()
        self._joint = JointReload(config, self._asked)
        self._reloads: set[asyncio.Task[Report]] = set()
        self._ended: Snapshot = {}
        """The counts of ended processes: a counter must not fall."""
        self._engines = SharedEngines()
        self._stopping = asyncio.Event()
        self._first_failure: int | None = None
        self._started = 0
        self._all_started = asyncio.Event()

    @property
    def address(self) -> str:
        return address_of(self._workers[0].listener, self._config.server.scheme)

    async def run(self, greet: Callable[[str], None]) -> int:
        """Serve until a signal; return the exit status. `greet` is called with the address once all workers serve."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop, name)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            loop.add_signal_handler(signal.SIGHUP, self._stop if is_terminal else self._hang_up, signal.SIGHUP)
        else:
            log.info("server.hang_ups_ignored")
        async with AsyncExitStack() as resources:
            keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
            greeting = asyncio.create_task(self._greet(greet))
            if self._config.admin is not None:
                processes = Processes(self._ask_workers, self._snapshot, self._report, self._reload)
                answering = listening(self._config, processes, self._admin)
                log.info("admin.started", address=await resources.enter_async_context(answering))
            await asyncio.gather(*keepers)
            await self._engines.close()
            greeting.cancel()
        for worker in self._workers:
            worker.listener.close()
            for file in worker.spool:
                os.close(file)
        return self._first_failure or 0

    async def _greet(self, greet: Callable[[str], None]) -> None:
        await self._all_started.wait()
        log.info("server.started", address=f"{self.address}/v1", workers=len(self._workers))
        greet(self.address)
        if was_hung_up():
            self._hang_up(signal.SIGHUP)

    def _stop(self, name: signal.Signals) -> None:
        """Let all workers finish; a second signal ends them at once."""
        if self._stopping.is_set():
            self._pass_on(name)
            return
        self._stopping.set()
        log.info("server.stopping", drain_s=self._config.server.drain_s)
        self._pass_on(signal.SIGTERM)
        limit_s = self._config.server.drain_delay_s + self._config.server.drain_s + GRACE_S
        asyncio.get_running_loop().call_later(limit_s, self._pass_on, signal.SIGKILL)

    def _pass_on(self, name: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(name)

    def _hang_up(self, name: signal.Signals) -> None:
        """Let workers follow renamed files, and read the config again."""
        self._pass_on(name)
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _keep(self, worker: Worker) -> None:
        """Run a process in a worker's place, and another one whenever that ends, until the supervisor is stopped."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            status = await self._run(worker)
            if self._stopping.is_set():
                break
            # A process that ends so before all have started has found a fault of the config.
            if not self._all_started.is_set() and worker.pause_s == FIRST_PAUSE_S and status == 2:
                self._first_failure = status
                self._stop(signal.SIGTERM)
                break
            worker.pause_s = FIRST_PAUSE_S if loop.time() > began + STEADY_S else worker.pause_s
            log.error("worker.ended", worker=worker.number, status=status, starts_in_s=worker.pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(worker.pause_s):
                    await self._stopping.wait()
            worker.pause_s = min(2 * worker.pause_s, LONGEST_PAUSE_S)

    async def _run(self, worker: Worker) -> int:
        """Run one process to its end; return its exit status."""
        own, other = socket.socketpair()
        engines, its_engines = socket.socketpair()
        places = {LISTENER: worker.listener.fileno(), CONTROL: other.fileno(), ENGINES: its_engines.fileno()}
        async with self._joint.starting:  # a reload reaches it, or is over
            try:
                process = await self._start_process(worker, places)
            finally:
                other.close()
                its_engines.close()
            worker.process, worker.link = process, await Link.over(own)
        serving = asyncio.create_task(self._serve_engines(process, engines))
        worker.heard_at = asyncio.get_running_loop().time()
        listening_to, watching = asyncio.create_task(self._listen(worker)), asyncio.create_task(self._watch(worker))
        try:
            return await process.wait()
        finally:
            listening_to.cancel()
            watching.cancel()
            worker.link.close()
            self._asked.forget(worker.link)
            await serving
            worker.process = worker.link = None
            worker.serves = False
            sums = {metric: series for metric, series in worker.counted.items() if metric.kind != "gauge"}
            self._ended, worker.counted = merge([self._ended, sums]), {}

    async def _start_process(self, worker: Worker, places: dict[str, int]) -> Process:
        """Start a process in a worker's place, with the config that is served now. `places` are its descriptors."""
        places = dict(places)
        if self._joint.texts is not None:
            places[TEXTS] = self._joint.texts.to_file()
        environment = {name: str(file) for name, file in places.items()}
        environment[SPOOL] = ",".join(map(str, worker.spool))
        environment[NUMBER] = f"{worker.number}/{len(self._workers)}"
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, env={**os.environ, **environment}, pass_fds=(*places.values(), *worker.spool),
                start_new_session=True,  # Ctrl-C in a terminal is for the supervisor
            )  # fmt: skip
        finally:
            if TEXTS in places:
                os.close(places[TEXTS])

    async def _serve_engines(self, process: Process, end: socket.socket) -> None:
        if not await self._engines.serve(end) and process.returncode is None:
            process.kill()

    async def _listen(self, worker: Worker) -> None:
        """Read the messages of a worker."""
        link = worker.link
        with suppress(EOFError):
            while link is not None:
                word, value = await link.receive()
                worker.heard_at = asyncio.get_running_loop().time()
                if word == "started":
                    worker.serves = True
                    self._started += 1
                    if self._started >= len(self._workers):
                        self._all_started.set()
                if word == "asked":
                    self._asked.settle(*value)
                question = self._questions.pop((worker.number, word), None)
                if question is not None and not question.done():
                    question.set_result(value)

    async def _watch(self, worker: Worker) -> None:
        """Kill a process that does not answer any more.

        Unanswered pings count, not the time: while the supervisor itself was stopped, workers have sent no answer.
        """
        unanswered = 0
        while worker.process is not None and worker.link is not None:
            heard_at = worker.heard_at
            worker.link.send("ping")
            await asyncio.sleep(PING_S)
            unanswered = unanswered + 1 if worker.heard_at == heard_at else 0
            if unanswered * PING_S > HANG_S:
                log.error("worker.hung", worker=worker.number, silent_s=round(unanswered * PING_S))
                worker.process.kill()
                return

    async def _reload(self) -> Report:
        """Let all workers read the config again."""
        return await self._joint.reload(self._links)

    def _links(self) -> dict[int, tuple[Link, bool]]:
        """Return the connections of the processes, and whether each serves."""
        return {each.number: (each.link, each.serves) for each in self._workers if each.link is not None}

    async def _ask_workers(self, word: str, argument: Any, *, of_all: bool) -> list[Any]:
        """Return the answers to a question of the admin API: of all workers, or of the first that serves."""
        links = [worker.link for worker in self._workers if worker.link is not None and worker.serves]
        return await self._asked.ask(links if of_all else links[:1], word, argument, ADMIN_ANSWER_S)

    async def _ask(self, word: str) -> dict[int, Any]:
        """Return the answers of the workers that answer in time, by their numbers."""
        questions = {worker.number: self._question(worker, word) for worker in self._workers if worker.link is not None}
        if questions:
            await asyncio.wait(questions.values(), timeout=ANSWER_S)
        return {number: question.result() for number, question in questions.items() if question.done()}

    def _question(self, worker: Worker, word: str) -> asyncio.Future[Any]:
        """Ask a worker, unless the same question is on its way."""
        question = self._questions.get((worker.number, word))
        if question is None and worker.link is not None:
            worker.link.send(word)
        if question is None or question.done():
            question = self._questions[worker.number, word] = asyncio.get_running_loop().create_future()
        return question

    async def _snapshot(self) -> Snapshot:
        """Return the metrics of all workers together; of one that does not answer, the last ones."""
        answers = await self._ask("metrics")
        for worker in self._workers:
            if worker.number in answers:
                worker.counted = decode(answers[worker.number])
        return merge([self._ended, *(worker.counted for worker in self._workers)])

    async def _report(self) -> Report:
        """Return the best of the workers' reports, and how many serve."""
        reports: list[Report] = [*(await self._ask("ready")).values()]
        if not reports:
            return 503, {"status": "draining" if self._stopping.is_set() else "unready", "workers": 0}
        status, report = min(reports, key=lambda found: found[0])
        return status, {**report, "workers": len(reports)}
