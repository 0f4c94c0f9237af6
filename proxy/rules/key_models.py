"""The models that an issued key may name: the policy `models` with the key's own list, after all policies."""

from functools import lru_cache

from policies import Policy, PolicyState, RequestCheck
from proxy.config.plugins import load
from proxy.rules.rule import Rule

NAME = "models"


@lru_cache(1024)
def rule_of_key(models: tuple[str, ...]) -> tuple[Rule, RequestCheck]:
    """Return the rule for keys with this list of models, and its request check."""
    policy = load(NAME, "policies", Policy).model_validate({"allow": models})
    return Rule(NAME, policy, "enforce"), policy.request_check(PolicyState())
