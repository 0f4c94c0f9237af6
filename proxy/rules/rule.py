"""One `[[policy]]` of the config: a policy, its name, and whose calls it applies to.

    enforce  a violation refuses the call
    report   the call passes unchanged; the violation is logged, recorded and returned in `x-headgate-policy`
    off      the policy does not run

With `rollout` an enforced policy applies to that share of the callers, always the same ones; for the others it reports.
"""  # fmt: skip

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from policies import Policy
from policies.support.globs import compile_globs
from proxy.config.schema import Mode
from proxy.context import Caller
from proxy.wire.fields import normalize

WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy and its selectors. None as a selector: every caller, every model."""

    name: str
    policy: Policy
    mode: Mode
    callers: re.Pattern[str] | None = None
    models: re.Pattern[str] | None = None
    rollout: float = 1.0
    is_selective: bool = field(init=False)
    """Whether it applies to some calls only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_selective", self.callers is not None or self.models is not None)

    @property
    def needs_state(self) -> bool:
        """Whether every call fails while the store of `[state]` is unavailable."""
        return self.mode == "enforce" and self.rollout >= 1 and not self.is_selective and self.policy.needs_state

    def applies_to(self, caller: Caller, model: str) -> bool:
        """Whether it applies to a call. One without a model may be for any: every selector of models matches it."""
        return (self.callers is None or self.callers.match(caller.name) is not None) and (
            self.models is None or not model or _matches_model(self.models, model)
        )

    def is_enforced_for(self, caller: Caller) -> bool:
        """Whether a violation refuses this caller's call. The share of callers is chosen by a hash of their names."""
        if self.mode != "enforce" or self.rollout >= 1:
            return self.mode == "enforce"
        digest = hashlib.sha256(f"{self.name}\0{caller.name}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.rollout * 2**64

    def counter_name(self) -> str:
        """Return the name of its counters: of what they count, for which calls. Limits and other policies are no part.

        So a budget goes on when its limit is raised, or when another policy is put before it.
        """
        counted = [_word(str(getattr(self.policy, key))) for key in self.policy.counts_by]
        if self.is_selective:
            patterns = [None if pattern is None else pattern.pattern for pattern in (self.callers, self.models)]
            counted.append(_short_hash(orjson.dumps(patterns)))
        return f"{self.name}:{'.'.join(counted)}" if counted else self.name

    def version(self) -> str:
        """Return 12 hex digits that change with the settings."""
        patterns = [None if pattern is None else pattern.pattern for pattern in (self.callers, self.models)]
        settings = [self.policy.model_dump(mode="json"), self.mode, self.rollout, patterns]
        return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def _word(text: str) -> str:
    """Return a text in a form for headers and keys: unchanged if possible, otherwise its hash."""
    return text if WORD.fullmatch(text) else _short_hash(text.encode("utf-8", "surrogatepass"))


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def compile_selector(globs: Sequence[str]) -> re.Pattern[str] | None:
    """Return one pattern for a list of globs; None when everything matches."""
    return None if "*" in globs else compile_globs(globs)


def _matches_model(models: re.Pattern[str], model: str) -> bool:
    """Return whether a selector matches a model's name in any case and width, with or without invisible characters."""
    return models.match(model) is not None or re.match(models.pattern, normalize(model), re.IGNORECASE) is not None
