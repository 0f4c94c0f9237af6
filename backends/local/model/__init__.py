"""A model's folder: the files beside the weights, read and checked once.

model.bin  config.json  vocabulary.json     as CTranslate2's converters write them
tokenizer.json  chat_template.jinja         as published with the model
tokenizer_config.json  special_tokens_map.json   optional: special tokens by name, chat templates of older models
generation_config.json                      optional: further tokens that end an answer
headgate.json                               optional: what only Headgate needs to know, see Manifest

A fault of a folder is reported here, in one sentence, instead of by the engine in the middle of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backends.local.model.chat_template import ChatTemplate, ChatTemplates
from backends.local.model.files import JSON, read_object, read_optional_object, read_text
from backends.local.model.manifest import JsonSeparators, Manifest, ToolFormatName, read_manifest
from backends.local.model.prefix import PrefixFinder
from backends.local.model.tokenizer import ModelTokenizer
from backends.local.model.tokenizer_config import read_chat_templates, read_special_tokens
from backends.local.model.vocabulary import check_vocabulary, read_vocabulary
from backends.local.model.weights import Weights, read_weights
from backends.local.work_budget import WorkLimitReached
from proxy.wire.errors import RequestError

# CTranslate2 returns a prompt of one token as part of the answer.
MIN_PROMPT_TOKENS = 2
# On a CPU the engine keeps a key and a value of 32 bits for every head, even for heads that share them.
KV_BYTES_PER_DIM = 2 * 4
ENGINE_TOKENS = ("bos_token", "eos_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Model:
    path: Path
    vocabulary: Sequence[str]  # indexed by token id
    longest_token_chars: int
    stop_ids: frozenset[int]
    context_length: int
    tool_format: ToolFormatName | None
    reasoning: tuple[str, str] | None  # the tags around it
    json_style: JsonSeparators
    kv_bytes_per_token: int  # the memory for one token of a prompt or an answer, on a CPU
    weights: Weights
    manifest: Manifest
    tokenizer: ModelTokenizer
    template: ChatTemplates
    prefix_finder: PrefixFinder

    def prompt(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[int]:
        """Return the conversation as token ids, up to the assistant's answer. Raises RequestError.

        `variables` are passed to the template; `template.uses` says which it uses.
        """
        longest_chars = self.context_length * self.longest_token_chars
        try:
            pieces = self.template.render(messages, tools, **variables)
        except RequestError as error:
            if sum(len(each["content"]) for each in messages if isinstance(each.get("content"), str)) > longest_chars:
                raise _too_long() from error  # the length explains why rendering exceeded its limit
            raise
        if sum(map(len, pieces)) > longest_chars:
            raise _too_long()  # without tokenizing many megabytes first
        try:
            ids = self.tokenizer.encode(pieces)
        except WorkLimitReached as error:
            raise _too_long() from error
        if len(ids) >= self.context_length:
            raise _too_long()
        if len(ids) < MIN_PROMPT_TOKENS:
            raise RequestError("The input is too short; this model needs at least two tokens.", param="input")
        return ids

    def prefix_length(
        self, messages: Sequence[JSON], tools: Sequence[JSON], ids: Sequence[int], **variables: Any
    ) -> int:
        """Return how many tokens at the start of this prompt depend only on instructions and tools, less at least two.

        Another conversation with the same instructions and tools begins with the same tokens.
        """
        return self.prefix_finder.prefix_length(messages, tools, variables, ids)


def read_model(path: Path, *, context_length: int | None = None) -> Model:
    """Return the model in a folder. Raises ValueError or OSError, in a sentence that names the file and its fault."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}.")
    if not (path / "model.bin").is_file():
        raise FileNotFoundError(f"The model folder {path} has no model.bin.")
    config, manifest = _read_config(path / "config.json"), read_manifest(path / "headgate.json")
    library_tokenizer = _read_tokenizer(path / "tokenizer.json")
    vocabulary = read_vocabulary(path / "vocabulary.json")
    check_vocabulary(path, vocabulary, library_tokenizer)
    weights = _read_weights(path / "model.bin", vocabulary)
    tokenizer, special = ModelTokenizer(library_tokenizer), read_special_tokens(path, config)
    sources = read_chat_templates(path)
    template = _compile_templates(path, sources, tokenizer, special)
    return Model(
        path, vocabulary, max(map(len, vocabulary)),
        stop_ids=_find_stop_ids(path, vocabulary, {*_eos_tokens(path, config), *manifest.eos} - {""}),
        context_length=_find_context_length(path, context_length, manifest),
        tool_format=manifest.find_tool_format(sources[1], tokenizer.added_tokens),
        reasoning=manifest.find_reasoning(sources[1], tokenizer.added_tokens),
        json_style=manifest.json_style, kv_bytes_per_token=_kv_bytes_per_token(path, manifest, weights),
        weights=weights, manifest=manifest, tokenizer=tokenizer, template=template,
        prefix_finder=PrefixFinder(
            lambda messages, tools, variables: tokenizer.encode(template.render(messages, tools, **variables))
        ),
    )  # fmt: skip


def _read_config(path: Path) -> JSON:
    config = read_object(path)
    for name in ENGINE_TOKENS:
        if name in config and not isinstance(config[name], str):
            raise ValueError(
                f'{path}: {name} is not a string, which the engine cannot read; write "" for a token that the model '
                "does not have, as `headgate model convert` does."
            )
    return config


def _read_weights(path: Path, vocabulary: Sequence[str]) -> Weights:
    weights = read_weights(path)
    if weights.vocabulary_size != len(vocabulary):
        raise ValueError(
            f"{path} has {weights.vocabulary_size} embeddings, but vocabulary.json {len(vocabulary)} tokens."
        )
    return weights


def _compile_templates(
    path: Path, sources: tuple[str, str], tokenizer: ModelTokenizer, special: dict[str, str]
) -> ChatTemplates:
    try:
        plain = ChatTemplate(sources[0], tokenizer.control_tokens, special)
        with_tools = plain if sources[1] == sources[0] else ChatTemplate(sources[1], tokenizer.control_tokens, special)
    except ValueError as error:
        raise ValueError(f"{path / 'chat_template.jinja'}: {error}") from error
    return ChatTemplates(plain, with_tools)


def _find_context_length(path: Path, configured: int | None, manifest: Manifest) -> int:
    length, window = configured or manifest.context_length, manifest.sliding_window
    if length is None:
        raise ValueError(
            f"The context length of the model in {path} is unknown: set context_length, or write it to headgate.json "
            "in the model's folder."
        )
    if configured and manifest.context_length and configured > manifest.context_length:
        raise ValueError(
            f"context_length is {configured}, but the model in {path} supports {manifest.context_length} tokens; "
            "answers to longer prompts would be wrong."
        )
    if configured and window and configured > window:
        raise ValueError(
            f"context_length is {configured}, but the sliding window of the model in {path} has {window} tokens; "
            "answers to longer prompts would be wrong."
        )
    return min(length, window or length)


def _kv_bytes_per_token(path: Path, manifest: Manifest, weights: Weights) -> int:
    layers, heads = manifest.layers or weights.layers, manifest.heads or weights.heads
    head_dim = manifest.head_dim or weights.head_dim
    if not (layers and heads and head_dim):
        raise ValueError(f"{path}: the size of the model is unknown; write layers, heads, head_dim to headgate.json.")
    return layers * heads * head_dim * KV_BYTES_PER_DIM


def _eos_tokens(path: Path, config: JSON) -> set[str]:
    """Return the tokens that end a text, by the configs of the engine and of the tokenizer."""
    by_engine = str(config.get("eos_token") or "")
    by_tokenizer = read_special_tokens(path, {}).get("eos_token", "")
    return {by_engine, by_tokenizer}


def _find_stop_ids(path: Path, vocabulary: Sequence[str], named: set[str]) -> frozenset[int]:
    """Return all tokens that end an answer: those given by name, and those of generation_config.json."""
    for token in named - set(vocabulary):
        raise ValueError(f"The model in {path} stops at '{token}', which is not in its vocabulary.json.")
    generation = path / "generation_config.json"
    given = read_optional_object(generation).get("eos_token_id")
    numbers = given if isinstance(given, list) else [] if given is None else [given]
    for number in numbers:
        if type(number) is not int or not 0 <= number < len(vocabulary):
            raise ValueError(f"{generation}: eos_token_id {number} is not the id of a token.")
    if not named and not numbers:
        raise ValueError(f"The model in {path} names no token that ends an answer; write it to eos in headgate.json.")
    return frozenset(numbers) | {vocabulary.index(token) for token in named}


def _read_tokenizer(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a readable tokenizer: {error}.") from error


def _too_long() -> RequestError:
    return RequestError(
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        code="context_length_exceeded", param="input",
    )  # fmt: skip
