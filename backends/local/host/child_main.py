"""The program of the child process: loads a model, generates tokens, and exits when the gateway is gone.

It is run by child_start.py with the number of its end of a socket pair; ipc.py defines the messages. Its event
loop is never blocked: the model works in threads, and pings are answered meanwhile.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ctranslate2  # noqa: F401  imported before the first message: from a slow disk it takes long and blocks the loop
import structlog

from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.decoding.job import DecodingStep
from backends.local.host.device import Placement, load_generator
from backends.local.host.direct_sender import DirectSender
from backends.local.host.gpu import measure_engine
from backends.local.host.ipc import (
    Channel,
    EngineReady,
    EngineSpec,
    IpcError,
    decode_job,
    encode_message,
    encode_steps,
)
from backends.local.scheduling.costs import Costs
from backends.local.scheduling.prefix_cache import PrefixCache
from backends.local.scheduling.scheduler import Scheduler
from proxy.fast_loop import fast_loop
from proxy.freed_memory import read_resident_bytes

# How long a thread may hold the interpreter lock while another waits: model threads add tokens, the loop sends them.
SWITCH_INTERVAL_S = 0.0005
# How likely the system kills this process instead of the gateway when memory runs out; from -1000 to 1000.
OOM_SCORE = 500


class ChildServer:
    """Executes the gateway's messages."""

    def __init__(self, channel: Channel, sender: DirectSender) -> None:
        self._channel = channel
        self._sender = sender
        self._scheduler: Scheduler | None = None
        self._is_on_gpu = False

    async def serve(self) -> None:
        """Handle messages until the gateway sends "close" or has exited; no clean-up then. Raises IpcError."""
        self._channel.forward_messages(self._handle_now)
        async with asyncio.TaskGroup() as tasks:
            while (message := await self._channel.receive()) is not None:
                match message:
                    case ["start", spec]:
                        tasks.create_task(self._load(EngineSpec(**spec)))
                    case ["close"]:
                        if self._scheduler is not None:
                            await self._scheduler.close()
                        return
                    case _ if not self._handle_now(message):
                        raise IpcError("a message of an unknown kind")

    def _handle_now(self, message: object) -> bool:
        """Handle a message for which nothing has to be waited, and return whether it is one."""
        match message:
            case ["job", *content] if self._scheduler is not None:
                self._scheduler.submit(decode_job(content))
            case ["cancel", int(job_id)] if self._scheduler is not None:
                self._scheduler.cancel(job_id)
            case ["deliver_at_once", int(job_id)] if self._scheduler is not None:
                self._scheduler.deliver_at_once(job_id)
            case ["ping"]:
                self._sender.send(encode_message("pong", self._resident_bytes()))
            case _:
                return False
        return True

    async def _load(self, spec: EngineSpec) -> None:
        try:
            loaded = await asyncio.to_thread(load_model, spec)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self._sender.send(encode_message("failed", str(error)))
            return
        generator, costs = loaded.generator, loaded.costs
        self._is_on_gpu = generator.device == "cuda"
        self._scheduler = Scheduler(
            generator, loaded.vocabulary, costs, workers=costs.workers, deliver=self._deliver,
            prefixes=PrefixCache(spec.prefix_cache_bytes, costs.kv_bytes_per_token), grammars=loaded.grammars,
        )  # fmt: skip
        ready = EngineReady(generator.device, generator.compute_type, costs)
        self._sender.send(encode_message("ready", ready))

    def _resident_bytes(self) -> int:
        """Return how much memory this process uses; 0 where the system does not report it, and on a GPU.

        There it is the memory of the libraries, and the model is elsewhere.
        """
        with suppress(OSError):
            return 0 if self._is_on_gpu else read_resident_bytes()
        return 0

    def _deliver(self, steps: Sequence[DecodingStep]) -> None:
        self._sender.send(encode_steps(steps))

    def forward_log(self, _logger: object, level: str, fields: MutableMapping[str, Any]) -> NoReturn:
        """Send a log line to the gateway, which formats and writes it. A processor for structlog."""
        line = encode_message("log", level, fields.pop("event"), {name: str(value) for name, value in fields.items()})
        self._sender.send(line)
        raise structlog.DropEvent


class LoadedEngine(NamedTuple):
    """A model that is ready for a scheduler."""

    generator: Any
    vocabulary: Sequence[str]
    costs: Costs
    grammars: GrammarCompiler


def load_model(spec: EngineSpec) -> LoadedEngine:
    """Load and measure a model, which takes long.

    Raises OSError, ValueError, RuntimeError or MemoryError with a message for operators.
    """
    if spec.process_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (spec.process_bytes, spec.process_bytes))
    path = Path(spec.path)
    vocabulary = json.loads((path / "vocabulary.json").read_bytes())
    if len(vocabulary) != spec.vocabulary_size:
        raise ValueError(f"The model in {path} has changed since the gateway was started; restart the gateway.")
    placement = Placement(**{**spec.placement, "device_index": tuple(spec.placement["device_index"])})
    generator = load_generator(path, vocabulary, placement)
    costs = measure_engine(generator, vocabulary, spec.kv_bytes_per_token, spec.prefix_cache_bytes)
    tokenizer = (path / "tokenizer.json").read_text(encoding="utf-8")
    return LoadedEngine(generator, vocabulary, costs, GrammarCompiler(tokenizer, spec.vocabulary_size, spec.stop_ids))


async def _serve(fd: int) -> None:
    """Serve and exit the process without waiting for threads of the library: they can abort it at a normal exit."""
    code = 1
    try:
        end = socket.socket(fileno=fd)
        sender = DirectSender(end.dup())
        server = ChildServer(await Channel.open(end), sender)
        structlog.configure(processors=[server.forward_log])
        await server.serve()
        code = 0
    except BaseException:  # noqa: BLE001  printed before the process exits
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Run the child process."""
    # A terminal and a service manager signal all processes at once; the gateway drains first, then sends "close".
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_serve(int(sys.argv[1])))
