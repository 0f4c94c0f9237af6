"""The engine's process: loads a model as it is ordered to, makes tokens, and ends as soon as nobody listens.

    python -m backends.local.host.child_main FD       FD is its end of a socket pair; what is said over it: messages.py

Its loop is never blocked: the model works in threads, and who asks whether it still lives is answered meanwhile.
"""  # fmt: skip

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

import ctranslate2  # noqa: F401  here, before the first word: from a slow disk it takes long, and nothing else runs
import structlog

from backends.local.decoding.grammar_matcher import Grammars
from backends.local.decoding.job import Step
from backends.local.host.device import Placement, place
from backends.local.host.ipc import BrokenLink, Link, Order, Ready, job_of, message, steps_message
from backends.local.scheduling.costs import Costs, calibrate
from backends.local.scheduling.prefix_cache import Prefixes
from backends.local.scheduling.scheduler import Scheduler

# How long a thread may hold Python's lock while another wants it: those of the model bring tokens, the loop sends them.
SWITCH_S = 0.0005
# How gladly the system ends this process rather than the gate when memory runs out; from -1000 to 1000.
OOM_SCORE = 500


class Child:
    """Does what the gate says."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._scheduler: Scheduler | None = None

    async def obey(self) -> None:
        """Until the gate says close, or is gone: then there is nobody to be orderly for. Raises BrokenLink."""
        async with asyncio.TaskGroup() as working:
            while (said := await self._link.receive()) is not None:
                match said:
                    case ["ping"]:
                        self._link.send(message("pong", resident_bytes()))
                    case ["start", order]:
                        working.create_task(self._load(Order(**order)))
                    case ["job", *content] if self._scheduler is not None:
                        self._scheduler.submit(job_of(content))
                    case ["cancel", number] if self._scheduler is not None:
                        self._scheduler.cancel(number)
                    case ["close"]:
                        if self._scheduler is not None:
                            await self._scheduler.close()
                        return
                    case _:
                        raise BrokenLink("a message of no kind that is known here")

    async def _load(self, order: Order) -> None:
        try:
            loaded = await asyncio.to_thread(load, order)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self._link.send(message("failed", str(error)))
            return
        generator, costs = loaded.generator, loaded.costs
        self._scheduler = Scheduler(
            generator, loaded.vocabulary, costs, workers=costs.workers, deliver=self._deliver,
            prefixes=Prefixes(order.prefix_cache_bytes, order.kv_bytes_per_token), grammars=loaded.grammars,
        )  # fmt: skip
        self._link.send(message("ready", Ready(generator.device, generator.compute_type, costs)))

    def _deliver(self, steps: Sequence[Step]) -> None:
        self._link.send(steps_message(steps))

    def relay(self, _logger: object, level: str, fields: MutableMapping[str, Any]) -> NoReturn:
        """A processor of structlog's: hand a line to the gate, which knows how logs are written."""
        line = message("log", level, fields.pop("event"), {name: str(value) for name, value in fields.items()})
        self._loop.call_soon_threadsafe(self._link.send, line)
        raise structlog.DropEvent


class Loaded(NamedTuple):
    generator: Any
    vocabulary: Sequence[str]
    costs: Costs
    grammars: Grammars


def load(order: Order) -> Loaded:
    """Takes long. Raises OSError, ValueError, RuntimeError or MemoryError, in words that an operator can read."""
    if order.process_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (order.process_bytes, order.process_bytes))
    path = Path(order.path)
    vocabulary = json.loads((path / "vocabulary.json").read_bytes())
    if len(vocabulary) != order.vocabulary_size:
        raise ValueError(f"The model in {path} is not the one that was there when the gate was started.")
    placement = Placement(**{**order.placement, "device_index": tuple(order.placement["device_index"])})
    generator = place(path, vocabulary, placement)
    costs = calibrate(generator, vocabulary, generator.num_generators, order.kv_bytes_per_token)
    tokenizer = (path / "tokenizer.json").read_text(encoding="utf-8")
    return Loaded(generator, vocabulary, costs, Grammars(tokenizer, order.vocabulary_size, order.stop_ids))


def resident_bytes() -> int:
    """How much memory this process takes; 0 where that is not told."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return 0


async def _serve(end: int) -> None:
    """Never returns. Threads of the library that still run are not waited for: at its exit they have been seen to
    abort a process."""
    code = 1
    try:
        child = Child(await Link.over(socket.socket(fileno=end)))
        structlog.configure(processors=[child.relay])
        await child.obey()
        code = 0
    except BaseException:  # noqa: BLE001  told, and then the process is over
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    # Ctrl-C and a service manager's stop reach all processes at once; the gate drains first, then says so.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
