"""The baseline of a local model: CTranslate2's own `generate_batch` in a process of its own.

`python -m tests.bench.local_library FOLDER DEVICE COMPUTE_TYPE WORKERS` reads lines of [prompts, tokens] and prints for
each line the seconds that generation took. It sorts the prompts by length and splits them into one batch per worker.
"""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from backends.local.host.device import Placement
from backends.local.host.device import load_generator as place
from tests.bench.processes import ROOT

Prompts = Sequence[Sequence[int]]


class LibraryProcess:
    """The running process of the library."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._process = process

    async def generate_s(self, prompts: Prompts, tokens: int) -> float:
        """Return how long the library takes to add this many tokens to each prompt. Raises RuntimeError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps([prompts, tokens]) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process of the library has exited.")
        return float(line)


@asynccontextmanager
async def start_library(folder: Path, placement: Placement) -> AsyncIterator[LibraryProcess]:
    """Start the process and wait until it has loaded the model. Leaving the block stops it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.local_library", str(folder), placement.device, placement.compute_type,
        str(library_workers(placement)), cwd=ROOT, stdin=PIPE, stdout=PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        library = LibraryProcess(process)
        await library.generate_s([[0, 1]], 2)
        yield library
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def library_workers(placement: Placement) -> int:
    """Return with how many workers the library is fastest: on a GPU one batch of all prompts."""
    return 1 if placement.device == "cuda" else placement.workers or 1


def main(folder: Path, placement: Placement) -> None:
    vocabulary = json.loads((folder / "vocabulary.json").read_bytes())
    generator = place(folder, vocabulary, placement)

    def generate(batch: Prompts, tokens: int) -> None:
        texts = [[vocabulary[number] for number in prompt] for prompt in batch]
        generator.generate_batch(
            texts, max_length=tokens, end_token=[], include_prompt_in_result=False, sampling_topk=1
        )

    workers = library_workers(placement)
    with ThreadPoolExecutor(workers) as threads:
        for line in sys.stdin:
            prompts, tokens = orjson.loads(line)
            started = time.perf_counter()
            ordered = sorted(prompts, key=len)
            size = -(-len(ordered) // workers)
            batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
            list(threads.map(generate, batches, [tokens] * len(batches)))
            print(time.perf_counter() - started, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Placement(sys.argv[2], compute_type=sys.argv[3], workers=int(sys.argv[4])))  # type: ignore[arg-type]
