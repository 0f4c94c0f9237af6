"""Compiles grammars for one vocabulary and computes which tokens may come next.

    compiler.matcher(grammar)  ->  allows(token)  forced()  consume(token)  is_complete

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/fast_forward.md
"""  # fmt: skip

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local.decoding.grammar_tokenizer import build_tokenizer

# Callers repeat the same schemas and tools, so compiled grammars are kept. Matchers of one compiled grammar share the
# states that they discover, which makes them fast and the grammar large: it is compiled again after so many uses.
MAX_COMPILED, MAX_USES = 16, 32
# Each optional property makes four items; llguidance's default of 2,000 is for smaller schemas.
MAX_ITEMS_IN_ROW = 10_000
# How many lexer states a compiled grammar may have; each takes half a kilobyte.
MAX_LEXER_STATES = 50_000
# What one mask may cost before the answer fails: about 15,000 units of fuel or 20,000 items take a millisecond.
STEP_FUEL, STEP_ITEMS = 200_000, 50_000
BITS = 32


class GrammarCompiler:
    """Compiles each grammar once. Its methods may be called from several threads.

    The first call reads the vocabulary, which takes a second or more when it is large.
    """

    def __init__(self, tokenizer_json: str, vocabulary_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocabulary_size = vocabulary_size
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # with its uses, most recently used last

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """Return a matcher at the beginning of the grammar.

        Raises ValueError with llguidance's message for an invalid grammar.
        """
        with self._lock:
            compiled, uses = self._compiled.pop(grammar, (None, 0))
            if compiled is None or uses >= MAX_USES:
                compiled, uses = self._compile(grammar), 0
            self._compiled[grammar] = compiled, uses + 1
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return GrammarMatcher(compiled.deep_copy(), self._vocabulary_size, self._tokenizer)

    def forget(self, grammar: str) -> None:
        """Drop a compiled grammar, for example because it has reached its limit of states."""
        with self._lock:
            self._compiled.pop(grammar, None)

    def _compile(self, grammar: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self._tokenizer_json, self._vocabulary_size, self._stop_ids)
        limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS_IN_ROW, max_lexer_states=MAX_LEXER_STATES, step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS, verbose_errors=False,
        )  # fmt: skip
        compiled = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if compiled.is_error():
            raise ValueError(compiled.get_error())
        return compiled


class GrammarMatcher:
    """Follows one answer through its grammar. Belongs to one thread at a time."""

    def __init__(self, matcher: Any, vocabulary_size: int, tokenizer: Any) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self._mask: NDArray[np.uint32] = np.zeros((vocabulary_size + BITS - 1) // BITS, dtype=np.uint32)
        self._address, self._bytes = self._mask.ctypes.data, self._mask.nbytes

    @property
    def is_complete(self) -> bool:
        """Whether no further token is possible."""
        return bool(self._matcher.is_stopped())

    @property
    def may_stop(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def error(self) -> str:
        """Why the matcher cannot continue: a cost limit, or a token that is not allowed; "" when it can."""
        return str(self._matcher.get_error() or "")

    def allows(self, token_id: int) -> bool:
        """Return whether this token may come next. Computes the whole mask, which `allowed` then returns.

        This is stricter than llguidance's validation: the mask excludes ways to split a forced text that the
        tokenizer would not choose.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bytes)
        return bool(self._mask[token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1))

    def allowed(self) -> NDArray[np.bool_]:
        """Return the mask [vocabulary] of the last `allows`."""
        return np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self.vocabulary_size].astype(np.bool_)

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, up to the first choice.

        Returns nothing where the tokenizer would split their text differently; the mask then leads token by token.
        """
        tokens = list(self._matcher.compute_ff_tokens())
        return tokens if not tokens or self._match_forced_bytes(tokens) else []

    def consume(self, token_id: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token_id)

    def _match_forced_bytes(self, tokens: Sequence[int]) -> bool:
        text = b"".join(
            b"\xff[%d]" % token if self._tokenizer.is_special_token(token) else self._tokenizer.decode_bytes([token])
            for token in tokens
        )
        return bool(self._matcher.compute_ff_bytes().startswith(text))
