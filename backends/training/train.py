"""The training loop: Muon for the matrices, AdamW for the rest, a rate that falls to nothing as the minutes run out.

`backends/demo` was made in seven stages on two shared cores, in 302 minutes:

    train --out demo --seed 7 --minutes 50
    train --out demo --seed 8 --minutes 32 --peak 0.5 --resume
    train --out demo --seed 9 --minutes 24 --peak 0.5 --resume
    train --out demo --seed 10 --minutes 90 --peak 0.5 --resume     (stopped after 45 minutes)
    train --out demo --seed 11 --minutes 46 --peak 0.3 --resume
    train --out demo --seed 12 --minutes 27 --peak 0.3 --resume
    train --out demo --seed 13 --minutes 78 --peak 0.5 --resume

The corpus was improved before each of them, and PROMPT_WEIGHT fell from 0.3 to 0.1 before the fourth. The script as it
is now therefore trains an equivalent, not these very bytes.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from backends.training import convert, vocabulary
from backends.training.corpus import dialogues
from backends.training.network import Network, Shape
from backends.training.prompt import END, START, render

WORKERS = 2
TOKENS_PER_WORKER = 2048
LONGEST = 2048
VOCABULARY = 1536
POOL = 2048
PROMPT_WEIGHT, PROMPT_SHARE = 0.1, 0.3
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train, where to, and from which share of the full rate it falls to nothing."""

    minutes: float
    seed: int
    out: Path
    resumed: bool = False
    peak: float = 1.0

    @property
    def weights(self) -> Path:
        """Renewed every five minutes, so that a crash loses little."""
        return self.out.with_name(self.out.name + ".npz")


def train(plan: Plan) -> None:
    """Leave the finished model in `plan.out`, and its weights in full precision beside it."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)  # one per worker: waiting for each other after every operation costs a third
    tokenizer = _tokenizer(plan)
    network = Network(Shape(tokens=tokenizer.get_vocab_size()))
    if plan.resumed:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(plan.weights).items()})
    print(f"{sum(each.numel() for each in network.parameters()):,} parameters", flush=True)
    _loop(network, batches(tokenizer, f"train {plan.seed}"), plan)
    _save(network, plan.weights)
    convert.write(_weights(network), network.shape, tokenizer, plan.out)


def _tokenizer(plan: Plan) -> Tokenizer:
    path = plan.out / "tokenizer.json"
    if plan.resumed:
        return Tokenizer.from_file(str(path))
    lessons = islice(dialogues(f"vocabulary {plan.seed}"), 40_000)
    tokenizer = vocabulary.learn((render(each.messages, each.tools) for each in lessons), VOCABULARY)
    plan.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path), pretty=False)
    return tokenizer


def _loop(network: Network, source: Iterator[Batch], plan: Plan) -> None:
    seconds = plan.minutes * 60
    matrices = [each for each in network.layers.parameters() if each.ndim == 2]
    taken = {id(each) for each in matrices}
    others = [each for each in network.parameters() if id(each) not in taken]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    pool = ThreadPoolExecutor(WORKERS)
    began, saved, step, seen, average = time.monotonic(), 0.0, 0, 0, 0.0
    while (spent := time.monotonic() - began) < seconds:
        rate = plan.peak * min(1.0, (step + 1) / 30) * max(0.01, 1 - spent / seconds)
        halves = [next(source) for _ in range(WORKERS)]
        losses = list(pool.map(lambda batch: _learn(network, batch), halves))
        for each, *parts in zip(network.parameters(), *(slopes for _, slopes in losses), strict=True):
            each.grad = torch.stack(parts).mean(0)
        nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(rate * MATRIX_RATE, pool)
        adam.param_groups[0]["lr"] = rate * OTHER_RATE
        adam.step()
        step, seen = step + 1, seen + sum(batch.ids.numel() for batch in halves)
        average += (sum(loss for loss, _ in losses) / WORKERS - average) * max(0.02, 1 / step)
        if step % 50 == 0:
            print(f"{spent:6.0f} s  step {step}  {seen:,} tokens  loss {average:.4f}", flush=True)
        if spent - saved > 300:
            saved = spent
            _save(network, plan.weights)


def _learn(network: Network, batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
    """The loss and its slopes, handed back instead of added up: two threads of Python do this at once."""
    loss = _loss(network, batch)
    return loss.item(), torch.autograd.grad(loss, list(network.parameters()))


def _loss(network: Network, batch: Batch) -> Tensor:
    """The mean over weighted tokens; of the prompt only some tokens are drawn, of the padding none."""
    weights = batch.weights[:, 1:]
    drawn = (weights == 1) | ((weights > 0) & (torch.rand(weights.shape) < PROMPT_SHARE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(batch.ids[:, :-1], drawn)
    wanted = functional.cross_entropy(logits.float(), batch.ids[:, 1:][drawn], reduction="none")
    return (wanted * weights[drawn]).sum() / weights[drawn].sum()


def _save(network: Network, path: Path) -> None:
    beside = path.with_suffix(".part.npz")
    np.savez(beside, allow_pickle=False, **_weights(network))
    beside.replace(path)


def _weights(network: Network) -> dict[str, np.ndarray]:
    return {name: value.detach().float().numpy() for name, value in network.state_dict().items()}


def batches(tokenizer: Tokenizer, seed: str) -> Iterator[Batch]:
    """Batches of whole dialogues of about equal length, drawn from one pool of lessons after the other."""
    source = dialogues(seed)
    shuffle = np.random.default_rng(sum(seed.encode()))
    while True:
        texts = [render(each.messages, each.tools) for each in islice(source, POOL)]
        rows = [np.array(each.ids[:LONGEST]) for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
        rows.sort(key=len)
        groups: list[list[np.ndarray]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row) > TOKENS_PER_WORKER:
                groups.append([])
            groups[-1].append(row)
        for number in shuffle.permutation(len(groups)):
            yield _batch(groups[number], tokenizer)


def _batch(rows: list[np.ndarray], tokenizer: Tokenizer) -> Batch:
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    weights = np.zeros((len(rows), longest), dtype=np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        weights[number, : len(row)] = spoken(row, tokenizer)
    return Batch(torch.from_numpy(ids), torch.from_numpy(weights))


def spoken(row: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """One for what the assistant says and the end of it, little for all the rest."""
    start, end, newline = (tokenizer.token_to_id(each) for each in (START, END, "Ċ"))
    head = [start, *tokenizer.encode("assistant", add_special_tokens=False).ids, newline]
    weights = np.full(len(row), PROMPT_WEIGHT, dtype=np.float32)
    ends = np.flatnonzero(row == end)
    for at in np.flatnonzero(row == start):
        if row[at : at + len(head)].tolist() == head:
            close = ends[ends > at]
            weights[at + len(head) : close[0] + 1 if len(close) else len(row)] = 1.0
    return weights


class Muon:
    """Momentum made orthogonal, matrix by matrix. Source: https://kellerjordan.github.io/posts/muon/"""

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.matrices, self.momentum = matrices, momentum
        self.memory = [torch.zeros_like(each) for each in matrices]

    def step(self, rate: float, pool: Executor) -> None:
        list(pool.map(lambda number: self._turn(number, rate), range(len(self.matrices))))

    @torch.no_grad()
    def _turn(self, number: int, rate: float) -> None:
        matrix, memory = self.matrices[number], self.memory[number]
        slope = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
        memory.lerp_(slope, 1 - self.momentum)
        change = orthogonal(slope.lerp(memory, self.momentum))
        matrix.mul_(1 - rate * 0.05)
        matrix.add_(change, alpha=-rate * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about one, by five Newton-Schulz steps."""
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).bfloat16()
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    straight: Tensor = (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).float()
    return straight
