"""Which tokens may come next: grammars compiled for one model's vocabulary.

    grammar.matcher(text)  ->  allows(token)  forced()  consume(token)  over

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/fast_forward.md
"""  # fmt: skip

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local.decoding.grammar_tokenizer import spelled

# Callers send the same schemas and tools again with every call. All that follow one compiled grammar add to what it
# knows, which makes them quick, and makes it large: after so many it is compiled anew.
KEPT, USES = 16, 32
# Each property that may be missing makes four of these; llguidance's own limit of 2,000 is for smaller schemas.
MAX_ITEMS_IN_ROW = 10_000
# How many states the texts of a compiled grammar may be in; each takes half a kilobyte.
MAX_LEXER_STATES = 50_000
# What one mask may cost; a grammar that costs more ends its answer. About 15,000 and 20,000 in a millisecond.
STEP_FUEL, STEP_ITEMS = 200_000, 50_000
BITS = 32


class Grammars:
    """Compiles grammars, each once. The vocabulary is read at the first, which takes a second or more when it is large.

    All of it may be used from several threads.
    """

    def __init__(self, tokenizer_json: str, vocabulary_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocabulary_size = vocabulary_size
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # the last used at the end; how often

    def matcher(self, grammar: str) -> "Matcher":
        """At the beginning of the grammar. Raises ValueError with llguidance's sentence for one that is none."""
        with self._lock:
            compiled, uses = self._compiled.pop(grammar, (None, 0))
            if compiled is None or uses >= USES:
                compiled, uses = self._compile(grammar), 0
            self._compiled[grammar] = compiled, uses + 1
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy(), self._vocabulary_size, self._tokenizer)

    def forget(self, grammar: str) -> None:
        """Compile it anew the next time: it has come to know too much to be followed any further."""
        with self._lock:
            self._compiled.pop(grammar, None)

    def _compile(self, grammar: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        if self._tokenizer is None:
            self._tokenizer = spelled(self._tokenizer_json, self._vocabulary_size, self._stop_ids)
        limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS_IN_ROW, max_lexer_states=MAX_LEXER_STATES, step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS, verbose_errors=False,
        )  # fmt: skip
        compiled = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if compiled.is_error():
            raise ValueError(compiled.get_error())
        return compiled


class Matcher:
    """Follows one answer through its grammar. Belongs to one thread at a time."""

    def __init__(self, matcher: Any, vocabulary_size: int, tokenizer: Any) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self.size = vocabulary_size
        self._mask: NDArray[np.uint32] = np.zeros((vocabulary_size + BITS - 1) // BITS, dtype=np.uint32)
        self._address, self._bytes = self._mask.ctypes.data, self._mask.nbytes

    @property
    def over(self) -> bool:
        """Whether nothing may come any more."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str:
        """Why it can follow no further: what the grammar costs, or a token that it does not allow; "" when it can."""
        return str(self._matcher.get_error() or "")

    def allows(self, token: int) -> bool:
        """Whether this token may come next; it looks the whole vocabulary over, `allowed` then tells the others.

        Not what llguidance calls valid: its mask leaves out ways to cut a forced text that the tokenizer would not.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bytes)
        return bool(self._mask[token >> 5] >> np.uint32(token & 31) & np.uint32(1))

    def allowed(self) -> NDArray[np.bool_]:
        """[vocabulary] of the last `allows`."""
        return np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self.size].astype(np.bool_)

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, before there is a choice.

        None where the tokenizer spells their text otherwise: then the mask leads through it, token by token.
        """
        tokens = list(self._matcher.compute_ff_tokens())
        return tokens if not tokens or self._spell(tokens) else []

    def _spell(self, tokens: Sequence[int]) -> bool:
        told = b"".join(
            b"\xff[%d]" % token if self._tokenizer.is_special_token(token) else self._tokenizer.decode_bytes([token])
            for token in tokens
        )
        return bool(self._matcher.compute_ff_bytes().startswith(told))

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    def consume(self, token: int) -> None:
        self._matcher.consume_token(token)
