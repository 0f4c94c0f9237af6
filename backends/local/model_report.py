"""Describes a model folder for `headgate model check`: loads it and generates one token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from backends.local.host.device import Placement
from backends.local.host.device import load_generator as place
from backends.local.model import Model, read_model
from backends.local.model.files import JSON
from proxy.wire.errors import RequestError

SAMPLE: list[JSON] = [{"role": "user", "content": "Hello!"}]
TOOL: JSON = {
    "type": "function",
    "function": {"name": "now", "description": "The time", "parameters": {"type": "object"}},
}


def describe_model(folder: Path, device: Literal["auto", "cpu", "cuda"]) -> Iterator[tuple[str, str]]:
    """Yield names and values as they become known. Raises ValueError or OSError when the model cannot be served."""
    model = read_model(folder)
    yield "model", str(folder)
    yield from _describe_files(model)
    yield "prompt", f"{len(_prompt(model, []))} tokens for a greeting{_tool_prompt_length(model)}"
    yield from _describe_engine(model, device)


def _describe_files(model: Model) -> Iterator[tuple[str, str]]:
    manifest, weights = model.manifest, model.weights
    heads, head_dim = manifest.heads or weights.heads, manifest.head_dim or weights.head_dim
    yield "architecture", manifest.architecture or "unknown"
    yield "layers", f"{weights.layers}, {heads or '?'} heads of {head_dim or '?'}"
    padding = len(model.vocabulary) - model.tokenizer.size
    yield "vocabulary", f"{len(model.vocabulary)} tokens" + (f", {padding} of them padding" if padding > 0 else "")
    window = f", sliding window of {manifest.sliding_window}" if manifest.sliding_window else ""
    yield "context", f"{model.context_length} tokens{window}"
    yield "end tokens", " ".join(sorted(model.vocabulary[number] for number in model.stop_ids))
    yield "tools", model.tool_format or "none: it cannot call functions"
    yield "reasoning", " ... ".join(model.reasoning) if model.reasoning else "none"
    yield "JSON", f"written with {model.json_style.item_separator!r} and {model.json_style.key_separator!r}"
    yield "weights", f"{weights.size_bytes / 1e6:,.1f} MB, stored as {weights.data_type}"
    context_mb = model.kv_bytes_per_token * model.context_length / 1e6
    yield "memory", f"{model.kv_bytes_per_token:,} bytes a token, {context_mb:,.1f} MB for a full context"


def _describe_engine(model: Model, device: Literal["auto", "cpu", "cuda"]) -> Iterator[tuple[str, str]]:
    import ctranslate2

    yield "on cpu", " ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))
    for gpu in range(ctranslate2.get_cuda_device_count()):
        yield f"on cuda {gpu}", " ".join(sorted(ctranslate2.get_supported_compute_types("cuda", gpu)))
    generator = place(model.path, model.vocabulary, Placement(device))
    yield "runs on", f"{generator.device} as {generator.compute_type}"
    prompt = [model.vocabulary[number] for number in _prompt(model, [])]
    tokens = generator.generate_batch([prompt], max_length=1, include_prompt_in_result=False)[0].sequences_ids[0]
    yield "first token", repr(model.vocabulary[tokens[0]]) if tokens else "none: the answer ends"


def _tool_prompt_length(model: Model) -> str:
    return f", {len(_prompt(model, [TOOL]))} with a tool" if model.tool_format else ""


def _prompt(model: Model, tools: list[JSON]) -> list[int]:
    try:
        return model.prompt(SAMPLE, tools)
    except RequestError as error:
        raise ValueError(f"{model.path}: a greeting cannot be rendered: {error.message}") from error
