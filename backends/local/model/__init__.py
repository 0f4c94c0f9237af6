"""A model's folder: what stands beside the weights, read and checked once.

model.bin  config.json  vocabulary.json     as CTranslate2's converters write them
tokenizer.json  chat_template.jinja         as they came with the model
tokenizer_config.json  special_tokens_map.json   may be missing: special tokens by name, older models' chat templates
generation_config.json                      may be missing: more tokens that end an answer
headgate.json                               may be missing: what Headgate alone wants to know, see Card

What is wrong with a folder is found here, in one sentence, and not by the engine in the middle of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backends.local.model.card import Card, JsonStyle, ToolFormat, read_card
from backends.local.model.prefix import Prefixes
from backends.local.model.reading import JSON, object_if_there, object_in, text_in
from backends.local.model.template import ChatTemplate, ChatTemplates
from backends.local.model.tokenizer_config import special_tokens_in, templates_in
from backends.local.model.tokens import Tokens
from backends.local.model.vocabulary import compare, read_vocabulary
from backends.local.model.weights import Weights, read_weights
from proxy.wire.errors import RequestError

# A prompt of one token would come back as part of the answer.
MIN_PROMPT_TOKENS = 2
# On a processor the engine keeps a key and a value of 32 bits for every head, however many share theirs.
KV_BYTES = 2 * 4
ENGINE_TOKENS = ("bos_token", "eos_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Model:
    path: Path
    vocabulary: Sequence[str]  # the place of a token is its id
    longest_token_chars: int
    stop_ids: frozenset[int]
    context_length: int
    tool_format: ToolFormat | None
    reasoning: tuple[str, str] | None  # the tags around its thoughts
    json_style: JsonStyle
    kv_bytes_per_token: int  # what a token of a prompt or an answer takes in memory, on a processor
    weights: Weights
    card: Card
    tokens: Tokens
    template: ChatTemplates
    prefixes: Prefixes

    def prompt(self, messages: Sequence[JSON], tools: Sequence[JSON], **variables: Any) -> list[int]:
        """The conversation as ids, up to where the assistant is to speak. Raises RequestError.

        `variables` are for the template, which may read them: see `template.reads`.
        """
        longest_chars = self.context_length * self.longest_token_chars
        try:
            pieces = self.template.render(messages, tools, **variables)
        except RequestError as error:
            if sum(len(each["content"]) for each in messages if isinstance(each.get("content"), str)) > longest_chars:
                raise _too_long() from error  # which is why it was too much work
            raise
        if sum(map(len, pieces)) > longest_chars:
            raise _too_long()  # whatever its tokens are: a body of many megabytes is not read to find out
        ids = self.tokens.encode(pieces)
        if len(ids) >= self.context_length:
            raise _too_long()
        if len(ids) < MIN_PROMPT_TOKENS:
            raise RequestError("The input is too short; this model needs at least two tokens.", param="input")
        return ids

    def prefix_length(
        self, messages: Sequence[JSON], tools: Sequence[JSON], ids: Sequence[int], **variables: Any
    ) -> int:
        """How many tokens at the start of this prompt come from instructions and tools alone; it leaves two at least.

        Another conversation that begins with the same instructions and tools begins with the same tokens.
        """
        return self.prefixes.length(messages, tools, variables, ids)


def read_model(path: Path, *, context_length: int | None = None) -> Model:
    """Read a model's folder. Raises ValueError or OSError, in a sentence that names the file and what is wrong."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}.")
    if not (path / "model.bin").is_file():
        raise FileNotFoundError(f"The model folder {path} has no model.bin.")
    config, card = _config(path / "config.json"), read_card(path / "headgate.json")
    tokenizer, vocabulary = _tokenizer(path / "tokenizer.json"), read_vocabulary(path / "vocabulary.json")
    compare(path, vocabulary, tokenizer)
    weights = _weights(path / "model.bin", vocabulary)
    tokens, special, sources = Tokens(tokenizer), special_tokens_in(path, config), templates_in(path)
    template = _templates(path, sources, tokens, special)
    return Model(
        path, vocabulary, max(map(len, vocabulary)),
        stop_ids=_stop_ids(path, vocabulary, {*_eos(path, config), *card.eos} - {""}),
        context_length=_context_length(path, context_length, card),
        tool_format=card.tool_format_of(sources[1], tokens.added),
        reasoning=card.reasoning_of(sources[1], tokens.added),
        json_style=card.json_style, kv_bytes_per_token=_kv_bytes(path, card, weights), weights=weights, card=card,
        tokens=tokens, template=template,
        prefixes=Prefixes(lambda messages, tools, variables: tokens.encode(
            template.render(messages, tools, **variables))),
    )  # fmt: skip


def _config(path: Path) -> JSON:
    config = object_in(path)
    for name in ENGINE_TOKENS:
        if name in config and not isinstance(config[name], str):
            raise ValueError(
                f'{path}: {name} is no string, which the engine cannot read; write "" for a token that the model '
                "does not have, as `headgate model convert` does."
            )
    return config


def _weights(path: Path, vocabulary: Sequence[str]) -> Weights:
    weights = read_weights(path)
    if weights.vocabulary != len(vocabulary):
        raise ValueError(f"{path} has {weights.vocabulary} embeddings, but vocabulary.json {len(vocabulary)} tokens.")
    return weights


def _templates(path: Path, sources: tuple[str, str], tokens: Tokens, special: dict[str, str]) -> ChatTemplates:
    try:
        plain = ChatTemplate(sources[0], tokens.controls, special)
        with_tools = plain if sources[1] == sources[0] else ChatTemplate(sources[1], tokens.controls, special)
    except ValueError as error:
        raise ValueError(f"{path / 'chat_template.jinja'}: {error}") from error
    return ChatTemplates(plain, with_tools)


def _context_length(path: Path, asked: int | None, card: Card) -> int:
    length, window = asked or card.context_length, card.sliding_window
    if length is None:
        raise ValueError(
            f"How long a context the model in {path} can read is not known: set context_length, or write it to "
            "headgate.json beside the model."
        )
    if asked and card.context_length and asked > card.context_length:
        raise ValueError(
            f"context_length is {asked}, but the model in {path} was made for {card.context_length} tokens; beyond "
            "them its answers would be wrong."
        )
    if asked and window and asked > window:
        raise ValueError(
            f"context_length is {asked}, but the model in {path} looks back {window} tokens only; beyond them its "
            "answers would be wrong."
        )
    return min(length, window or length)


def _kv_bytes(path: Path, card: Card, weights: Weights) -> int:
    layers, heads = card.layers or weights.layers, card.heads or weights.heads
    head_dim = card.head_dim or weights.head_dim
    if not (layers and heads and head_dim):
        raise ValueError(
            f"{path}: how large the model is is not known; write layers, heads, head_dim to headgate.json."
        )
    return layers * heads * head_dim * KV_BYTES


def _eos(path: Path, config: JSON) -> set[str]:
    """The tokens that end a text, by the engine's own config and by the tokenizer's."""
    by_engine = str(config.get("eos_token") or "")
    by_tokenizer = special_tokens_in(path, {}).get("eos_token", "")
    return {by_engine, by_tokenizer}


def _stop_ids(path: Path, vocabulary: Sequence[str], named: set[str]) -> frozenset[int]:
    """All tokens that end an answer: those that the files name, and those to which generation_config.json points."""
    for token in named - set(vocabulary):
        raise ValueError(f"The model in {path} is to stop at '{token}', which is not in its vocabulary.json.")
    generation = path / "generation_config.json"
    given = object_if_there(generation).get("eos_token_id")
    numbers = given if isinstance(given, list) else [] if given is None else [given]
    for number in numbers:
        if type(number) is not int or not 0 <= number < len(vocabulary):
            raise ValueError(f"{generation}: eos_token_id {number} is not the id of a token.")
    if not named and not numbers:
        raise ValueError(f"The model in {path} names no token that ends an answer; write it to eos in headgate.json.")
    return frozenset(numbers) | {vocabulary.index(token) for token in named}


def _tokenizer(path: Path) -> Tokenizer:
    text = text_in(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer that can be read: {error}.") from error


def _too_long() -> RequestError:
    return RequestError(
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        code="context_length_exceeded", param="input",
    )  # fmt: skip
