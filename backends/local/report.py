"""What a model folder can do, found out by loading it and letting it say one token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from backends.local.host.device import Placement
from backends.local.host.device import load_generator as place
from backends.local.model import Model, read_model
from backends.local.model.reading import JSON
from proxy.wire.errors import RequestError

SAMPLE: list[JSON] = [{"role": "user", "content": "Hello!"}]
TOOL: JSON = {
    "type": "function",
    "function": {"name": "now", "description": "The time", "parameters": {"type": "object"}},
}


def report(folder: Path, device: Literal["auto", "cpu", "cuda"]) -> Iterator[tuple[str, str]]:
    """Names and values, in the order of work. Raises ValueError or OSError when the model cannot be served."""
    model = read_model(folder)
    yield "model", str(folder)
    yield from _of_files(model)
    yield "prompt", f"{len(_prompt(model, []))} tokens for a greeting{_with_tool(model)}"
    yield from _of_engine(model, device)


def _of_files(model: Model) -> Iterator[tuple[str, str]]:
    card, weights = model.card, model.weights
    heads, head_dim = card.heads or weights.heads, card.head_dim or weights.head_dim
    yield "architecture", card.architecture or "not told"
    yield "layers", f"{weights.layers}, {heads or '?'} heads of {head_dim or '?'}"
    padding = len(model.vocabulary) - model.tokens.size
    yield "vocabulary", f"{len(model.vocabulary)} tokens" + (f", {padding} of them padding" if padding > 0 else "")
    window = f", its window is {card.sliding_window}" if card.sliding_window else ""
    yield "context", f"{model.context_length} tokens{window}"
    yield "ends with", " ".join(sorted(model.vocabulary[number] for number in model.stop_ids))
    yield "tools", model.tool_format or "none: it cannot call functions"
    yield "reasoning", " ... ".join(model.reasoning) if model.reasoning else "none"
    yield "JSON", f"written with {model.json_style.item_separator!r} and {model.json_style.key_separator!r}"
    yield "weights", f"{weights.bytes / 1e6:,.1f} MB, stored as {weights.stored_as}"
    whole = model.kv_bytes_per_token * model.context_length / 1e6
    yield "memory", f"{model.kv_bytes_per_token:,} bytes a token, {whole:,.1f} MB for a whole context"


def _of_engine(model: Model, device: Literal["auto", "cpu", "cuda"]) -> Iterator[tuple[str, str]]:
    import ctranslate2

    yield "on cpu", " ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))
    for card in range(ctranslate2.get_cuda_device_count()):
        yield f"on cuda {card}", " ".join(sorted(ctranslate2.get_supported_compute_types("cuda", card)))
    generator = place(model.path, model.vocabulary, Placement(device))
    yield "runs on", f"{generator.device} as {generator.compute_type}"
    prompt = [model.vocabulary[number] for number in _prompt(model, [])]
    said = generator.generate_batch([prompt], max_length=1, include_prompt_in_result=False)[0].sequences_ids[0]
    yield "first token", repr(model.vocabulary[said[0]]) if said else "the end"


def _with_tool(model: Model) -> str:
    return f", {len(_prompt(model, [TOOL]))} with a tool" if model.tool_format else ""


def _prompt(model: Model, tools: list[JSON]) -> list[int]:
    try:
        return model.prompt(SAMPLE, tools)
    except RequestError as error:
        raise ValueError(f"{model.path}: a greeting cannot be rendered: {error.message}") from error
