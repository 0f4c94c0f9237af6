"""The training loop: Muon for the matrices, AdamW for the rest, and a learning rate that falls to almost zero.

`backends/demo` was made in seven stages on two shared cores, in 302 minutes:

    train --out demo --seed 7 --minutes 50
    train --out demo --seed 8 --minutes 32 --peak 0.5 --resume
    train --out demo --seed 9 --minutes 24 --peak 0.5 --resume
    train --out demo --seed 10 --minutes 90 --peak 0.5 --resume     (stopped after 45 minutes)
    train --out demo --seed 11 --minutes 46 --peak 0.3 --resume
    train --out demo --seed 12 --minutes 27 --peak 0.3 --resume
    train --out demo --seed 13 --minutes 78 --peak 0.5 --resume

The corpus was improved before each stage, and PROMPT_WEIGHT was lowered from 0.3 to 0.1 before the fourth. The present
script therefore trains an equivalent model, not the same bytes.
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
from backends.training.network import Network, NetworkShape
from backends.training.prompt import END, START, render

WORKERS = 2
TOKENS_PER_WORKER = 2048
LONGEST = 2048
VOCABULARY = 1536
POOL = 2048
PROMPT_WEIGHT, PROMPT_SHARE = 0.1, 0.3
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long to train, where to write the model, and the highest learning rate as a share of the full rate."""

    minutes: float
    seed: int
    out: Path
    resume: bool = False
    peak: float = 1.0

    @property
    def weights(self) -> Path:
        """The file of the weights, which is written every five minutes so that a crash loses little."""
        return self.out.with_name(self.out.name + ".npz")


def train(plan: TrainingPlan) -> None:
    """Train a network; write the model to `plan.out` and its weights in full precision to `plan.weights`."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)  # one per worker: synchronising several after every operation costs a third
    tokenizer = _tokenizer(plan)
    network = Network(NetworkShape(tokens=tokenizer.get_vocab_size()))
    if plan.resume:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(plan.weights).items()})
    print(f"{sum(each.numel() for each in network.parameters()):,} parameters", flush=True)
    _loop(network, batches(tokenizer, f"train {plan.seed}"), plan)
    _save(network, plan.weights)
    convert.write_model(_weights(network), network.shape, tokenizer, plan.out)


def _tokenizer(plan: TrainingPlan) -> Tokenizer:
    path = plan.out / "tokenizer.json"
    if plan.resume:
        return Tokenizer.from_file(str(path))
    lessons = islice(dialogues(f"vocabulary {plan.seed}"), 40_000)
    tokenizer = vocabulary.train_tokenizer((render(each.messages, each.tools) for each in lessons), VOCABULARY)
    plan.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path), pretty=False)
    return tokenizer


def _loop(network: Network, source: Iterator[TrainingBatch], plan: TrainingPlan) -> None:
    seconds = plan.minutes * 60
    matrices = [each for each in network.layers.parameters() if each.ndim == 2]
    matrix_ids = {id(each) for each in matrices}
    others = [each for each in network.parameters() if id(each) not in matrix_ids]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    pool = ThreadPoolExecutor(WORKERS)
    started, saved, step, seen, average = time.monotonic(), 0.0, 0, 0, 0.0
    while (spent := time.monotonic() - started) < seconds:
        rate = plan.peak * min(1.0, (step + 1) / 30) * max(0.01, 1 - spent / seconds)
        halves = [next(source) for _ in range(WORKERS)]
        losses = list(pool.map(lambda batch: _gradients(network, batch), halves))
        for each, *parts in zip(network.parameters(), *(gradients for _, gradients in losses), strict=True):
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


def _gradients(network: Network, batch: TrainingBatch) -> tuple[float, tuple[Tensor, ...]]:
    """Return the loss and its gradients. They are not accumulated in the network, because two threads run this."""
    loss = _loss(network, batch)
    return loss.item(), torch.autograd.grad(loss, list(network.parameters()))


def _loss(network: Network, batch: TrainingBatch) -> Tensor:
    """Return the weighted mean over the tokens: all of the assistant, a random share of the prompt, no padding."""
    weights = batch.weights[:, 1:]
    selected = (weights == 1) | ((weights > 0) & (torch.rand(weights.shape) < PROMPT_SHARE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(batch.ids[:, :-1], selected)
    losses = functional.cross_entropy(logits.float(), batch.ids[:, 1:][selected], reduction="none")
    return (losses * weights[selected]).sum() / weights[selected].sum()


def _save(network: Network, path: Path) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **_weights(network))
    part.replace(path)


def _weights(network: Network) -> dict[str, np.ndarray]:
    return {name: value.detach().float().numpy() for name, value in network.state_dict().items()}


def batches(tokenizer: Tokenizer, seed: str) -> Iterator[TrainingBatch]:
    """Yield batches of whole dialogues of similar length, shuffled within one pool of lessons after the other."""
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


def _batch(rows: list[np.ndarray], tokenizer: Tokenizer) -> TrainingBatch:
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    weights = np.zeros((len(rows), longest), dtype=np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        weights[number, : len(row)] = loss_weights(row, tokenizer)
    return TrainingBatch(torch.from_numpy(ids), torch.from_numpy(weights))


def loss_weights(row: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return weight 1 for the tokens of the assistant and their end token, PROMPT_WEIGHT for all others."""
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
    """Updates each matrix with its orthogonalized momentum. Source: https://kellerjordan.github.io/posts/muon/"""

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.matrices, self.momentum = matrices, momentum
        self.momenta = [torch.zeros_like(each) for each in matrices]

    def step(self, rate: float, pool: Executor) -> None:
        list(pool.map(lambda number: self._update(number, rate), range(len(self.matrices))))

    @torch.no_grad()
    def _update(self, number: int, rate: float) -> None:
        matrix, momentum = self.matrices[number], self.momenta[number]
        gradient = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
        momentum.lerp_(gradient, 1 - self.momentum)
        change = orthogonalize(gradient.lerp(momentum, self.momentum))
        matrix.mul_(1 - rate * 0.05)
        matrix.add_(change, alpha=-rate * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the nearest matrix whose singular values are all about 1, by five Newton-Schulz steps."""
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).bfloat16()
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    result: Tensor = (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).float()
    return result
