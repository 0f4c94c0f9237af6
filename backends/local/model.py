"""A model's folder: what stands beside the weights, read and checked once.

model.bin  config.json  vocabulary.json     as CTranslate2's converters write them
tokenizer.json  chat_template.jinja         as they came with the model
generation_config.json                      may be missing: more tokens that end an answer
headgate.json                               may be missing: what Headgate alone wants to know, see Card
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt, ValidationError
from tokenizers import Tokenizer

from backends.local.template import ChatTemplate
from backends.local.tokens import Tokens
from proxy.wire.errors import RequestError

JSON = dict[str, Any]

# A prompt of one token would come back as part of the answer.
MIN_PROMPT_TOKENS = 2


class Card(BaseModel):
    """headgate.json. Unknown keys are for readers to come."""

    context_length: PositiveInt | None = None
    tool_format: Literal["hermes"] | None = None
    eos: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    path: Path
    vocabulary: Sequence[str]  # the place of a token is its id
    longest_token_chars: int
    stop_ids: frozenset[int]
    context_length: int
    tool_format: str | None
    tokens: Tokens
    template: ChatTemplate

    def prompt(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> list[int]:
        """The conversation as ids, up to where the assistant is to speak. Raises RequestError."""
        pieces = self.template.render(messages, tools)
        if sum(map(len, pieces)) > self.context_length * self.longest_token_chars:
            raise _too_long()  # whatever its tokens are: a body of many megabytes is not read to find out
        ids = self.tokens.encode(pieces)
        if len(ids) >= self.context_length:
            raise _too_long()
        if len(ids) < MIN_PROMPT_TOKENS:
            raise RequestError("The input is too short; this model needs at least two tokens.", param="input")
        return ids


def read_model(path: Path, *, context_length: int | None = None) -> Model:
    """Read a model's folder. Raises ValueError or OSError, in a sentence that names the file and what is wrong."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}.")
    if not (path / "model.bin").is_file():
        raise FileNotFoundError(f"The model folder {path} has no model.bin.")
    config, card = _object(path / "config.json"), _card(path / "headgate.json")
    tokenizer, vocabulary = _tokenizer(path / "tokenizer.json"), _vocabulary(path / "vocabulary.json")
    _compare(path, vocabulary, tokenizer)
    length = context_length or card.context_length
    if length is None:
        raise ValueError(
            f"How long a context the model in {path} can read is not known: set context_length, or write it to "
            "headgate.json beside the model."
        )
    tokens = Tokens(tokenizer)
    bos, eos = (str(config.get(name) or "") for name in ("bos_token", "eos_token"))
    source = _text(path / "chat_template.jinja")
    try:
        template = ChatTemplate(source, tokens.controls, bos_token=bos, eos_token=eos)
    except ValueError as error:
        raise ValueError(f"{path / 'chat_template.jinja'}: {error}") from error
    stop_ids = _stop_ids(path, vocabulary, {eos, *card.eos} - {""})
    return Model(path, vocabulary, max(map(len, vocabulary)), stop_ids, length, card.tool_format, tokens, template)


def _stop_ids(path: Path, vocabulary: Sequence[str], named: set[str]) -> frozenset[int]:
    """All tokens that end an answer: those that the files name, and those to which generation_config.json points."""
    for token in named - set(vocabulary):
        raise ValueError(f"The model in {path} is to stop at '{token}', which is not in its vocabulary.json.")
    generation = path / "generation_config.json"
    given = _object(generation).get("eos_token_id") if generation.is_file() else None
    numbers = given if isinstance(given, list) else [] if given is None else [given]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < len(vocabulary):
            raise ValueError(f"{generation}: eos_token_id {number} is not the id of a token.")
    if not named and not numbers:
        raise ValueError(f"The model in {path} names no token that ends an answer; write it to eos in headgate.json.")
    return frozenset(numbers) | {vocabulary.index(token) for token in named}


def _compare(path: Path, vocabulary: Sequence[str], tokenizer: Tokenizer) -> None:
    """Prompts are given to the engine as strings: one that its vocabulary lacks would silently become another token."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > len(vocabulary):
        raise ValueError(f"{path}: tokenizer.json has {size} tokens, but vocabulary.json only {len(vocabulary)}.")
    for number, token in enumerate(vocabulary):
        known = tokenizer.id_to_token(number)
        if known is not None and known != token:
            raise ValueError(
                f"{path}: token {number} is '{known}' in tokenizer.json, but '{token}' in vocabulary.json."
            )


def _vocabulary(path: Path) -> list[str]:
    vocabulary = _json(path)
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(token, str) for token in vocabulary):
        raise ValueError(f"{path} is not a list of tokens.")
    return vocabulary


def _tokenizer(path: Path) -> Tokenizer:
    text = _text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer that can be read: {error}.") from error


def _card(path: Path) -> Card:
    if not path.is_file():
        return Card()
    try:
        return Card.model_validate(_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _object(path: Path) -> JSON:
    found = _json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object.")  # noqa: TRY004  one kind of error for one kind of fault
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model folder {path.parent} has no {path.name}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error


def _too_long() -> RequestError:
    return RequestError(
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        code="context_length_exceeded", param="input",
    )  # fmt: skip
