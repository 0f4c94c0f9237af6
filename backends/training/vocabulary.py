"""Trains the tokenizer: byte-level BPE over the generated dialogues.

Letters, digits, line ends and all other characters never share a token, so a word is split the same way wherever it
occurs. Only because of that can a small network copy words that it was not trained on.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.training.prompt import CALL, CALL_END, END, NOTHING, START

PIECES = Regex(r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+")


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Return a tokenizer with at most `size` tokens; the control tokens come first, padding is number 0."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(PIECES, behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=20,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[NOTHING, START, END],
    )
    tokenizer.train_from_iterator((_remove_tags(text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (CALL, CALL_END)])
    return tokenizer


def list_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return all tokens in the order of their ids."""
    return [tokenizer.id_to_token(number) or "" for number in range(tokenizer.get_vocab_size())]


def _remove_tags(text: str) -> str:
    for tag in (CALL, CALL_END, START, END):
        text = text.replace(tag, "\n")
    return text
