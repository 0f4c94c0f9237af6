"""The yardstick: CTranslate2's own `generate_batch` in a process of its own, and nothing between.

`python -m tests.bench.local_raw FOLDER DEVICE COMPUTE_TYPE WORKERS` reads lines of [prompts, tokens] and answers each
with the seconds that it took. The prompts are sorted by length and cut into one batch for each worker.
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


class Raw:
    """The process, as seen by who asks it."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self._process = process

    async def seconds(self, prompts: Prompts, tokens: int) -> float:
        """How long the library takes for so many tokens behind each of the prompts. Raises RuntimeError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps([prompts, tokens]) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process of the library is gone.")
        return float(line)


@asynccontextmanager
async def raw(folder: Path, placement: Placement) -> AsyncIterator[Raw]:
    """Start it and wait until it has loaded the model. Leaving the block ends it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.local_raw", str(folder), placement.device, placement.compute_type,
        str(placement.workers), cwd=ROOT, stdin=PIPE, stdout=PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        library = Raw(process)
        await library.seconds([[0, 1]], 2)
        yield library
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def main(folder: Path, placement: Placement) -> None:
    vocabulary = json.loads((folder / "vocabulary.json").read_bytes())
    generator = place(folder, vocabulary, placement)

    def run(batch: Prompts, tokens: int) -> None:
        texts = [[vocabulary[number] for number in prompt] for prompt in batch]
        generator.generate_batch(
            texts, max_length=tokens, end_token=[], include_prompt_in_result=False, sampling_topk=1
        )

    with ThreadPoolExecutor(placement.workers) as threads:
        for line in sys.stdin:
            prompts, tokens = orjson.loads(line)
            began = time.perf_counter()
            ordered = sorted(prompts, key=len)
            size = -(-len(ordered) // placement.workers)
            parts = [ordered[at : at + size] for at in range(0, len(ordered), size)]
            list(threads.map(run, parts, [tokens] * len(parts)))
            print(time.perf_counter() - began, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Placement(sys.argv[2], compute_type=sys.argv[3], workers=int(sys.argv[4])))  # type: ignore[arg-type]
