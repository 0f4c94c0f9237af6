"""The network in PyTorch: a small decoder with the architecture of Llama, which CTranslate2 can run."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The dimensions of the network, which CTranslate2 needs too."""

    tokens: int
    width: int = 256
    layers: int = 6
    heads: int = 4
    key_heads: int = 2
    hidden: int = 640
    rotary_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Attention(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        keys = shape.key_heads * shape.head_width
        self.queries = nn.Linear(shape.width, shape.width, bias=False)
        self.keys = nn.Linear(shape.width, keys, bias=False)
        self.values = nn.Linear(shape.width, keys, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, inputs: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        rows, length, width = inputs.shape
        split = (rows, length, -1, self.shape.head_width)
        queries = rotate(self.queries(inputs).view(split).transpose(1, 2), cosine, sine)
        keys = rotate(self.keys(inputs).view(split).transpose(1, 2), cosine, sine)
        values = self.values(inputs).view(split).transpose(1, 2)
        copies = self.shape.heads // self.shape.key_heads
        keys, values = keys.repeat_interleave(copies, 1), values.repeat_interleave(copies, 1)
        # Written out: on a CPU the backward pass of PyTorch's fused attention takes five times as long on short rows.
        scores = queries @ keys.transpose(2, 3) * self.shape.head_width**-0.5 + mask
        mixed = scores.softmax(-1).to(values.dtype) @ values
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class Layer(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.attention = Attention(shape)
        self.feed_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, inputs: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        inputs = inputs + self.attention(self.attention_norm(inputs), cosine, sine, mask)
        normed = self.feed_norm(inputs)
        fed: Tensor = self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return inputs + fed


class Network(nn.Module):
    """Maps token ids [rows, length] to logits [selected, tokens]; `selected` marks the positions to compute."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.tokens, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.apply(_initialize)

    def forward(self, ids: Tensor, selected: Tensor) -> Tensor:
        cosine, sine = angles(self.shape, ids.shape[1])
        mask = torch.full((ids.shape[1], ids.shape[1]), -1e4, dtype=torch.bfloat16).triu(1)
        state = self.embedding(ids)
        for layer in self.layers:
            state = layer(state, cosine, sine, mask)
        return functional.linear(self.norm(state[selected]), self.embedding.weight)


def angles(shape: NetworkShape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine by position, each half a head wide."""
    half = shape.head_width // 2
    speeds = shape.rotary_base ** (-torch.arange(half) / half)
    turns = torch.outer(torch.arange(length).float(), speeds)
    return turns.cos(), turns.sin()


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions to the two halves of a head."""
    first, second = heads.chunk(2, -1)
    cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.6)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
