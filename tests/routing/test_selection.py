"""Which target of a route is asked first."""

from collections import Counter

import pytest

from proxy.context import Caller
from proxy.routing.hot_keys import MAX_KEYS, HotKeys
from proxy.routing.routes import PoolSettings
from proxy.routing.selection import in_order
from proxy.routing.targets import Target, Targets
from tests.examples import make_call, make_context
from tests.pipelines import ScriptedBackend

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def targets() -> list[Target]:
    known = Targets()
    return [known.of(ScriptedBackend(name=name)) for name in NAMES]


def chosen(targets, strategy, *, weights=None, caller=None, hot_keys=None, most=None, **fields) -> list[str]:
    """Return the names of the targets in the order in which a call asks them."""
    context = make_context(caller) if caller else make_context()
    pool = PoolSettings(strategy, weights or {}, affinity_max_per_min=most)
    found = in_order(targets, pool, make_call(**fields), context, hot_keys or HotKeys())
    return [target.backend.name for target in found]


def test_order_is_that_of_the_config(targets):
    """Whatever the targets do at the moment."""
    targets[0].in_flight = 99

    assert chosen(targets, "order") == [*NAMES]


def test_weighted_targets_are_first_in_the_proportion_of_their_weights(targets):
    """A target without a weight has 1; every target is in the list once."""
    orders = [chosen(targets, "weighted", weights={"a": 7}) for _ in range(2000)]
    firsts = Counter(order[0] for order in orders)

    assert all(sorted(order) == [*NAMES] for order in orders)
    assert 1250 < firsts["a"] < 1550  # 1,400 are expected; the limits are 7 standard deviations away
    assert all(120 < firsts[name] < 280 for name in "bcd")


def test_the_target_with_the_fewest_calls_is_first(targets):
    """Equal ones take turns at random."""
    for target, in_flight in zip(targets, (3, 0, 2, 0), strict=True):
        target.in_flight = in_flight
    orders = {tuple(chosen(targets, "least_inflight")) for _ in range(200)}

    assert orders == {("b", "d", "c", "a"), ("d", "b", "c", "a")}


def test_affinity_is_the_same_for_the_same_key(targets):
    """In every process, because it is a hash; keys are spread over all targets."""
    first = {key: chosen(targets, "affinity", prompt_cache_key=str(key)) for key in range(200)}

    assert {key: chosen(targets, "affinity", prompt_cache_key=str(key)) for key in range(200)} == first
    assert min(Counter(order[0] for order in first.values()).values()) > 25
    assert len(first) == sum(Counter(order[0] for order in first.values()).values())


def test_only_the_keys_of_a_target_that_is_gone_move(targets):
    """All others keep the target whose cache has their prompts."""
    before = {key: chosen(targets, "affinity", prompt_cache_key=str(key))[0] for key in range(200)}
    after = {key: chosen(targets[1:], "affinity", prompt_cache_key=str(key))[0] for key in range(200)}

    assert {key: name for key, name in before.items() if name != "a"} == {
        key: after[key] for key, name in before.items() if name != "a"
    }


def test_without_a_key_the_team_and_the_end_user_decide(targets):
    """Callers of one team share what is cached for an end user; a key of another team is another key."""
    users = [f"user-{number}" for number in range(40)]
    anna, ben = Caller("anna", "search"), Caller("ben", "search")
    of_anna = [chosen(targets, "affinity", caller=anna, safety_identifier=user) for user in users]

    assert of_anna == [chosen(targets, "affinity", caller=ben, safety_identifier=user) for user in users]
    assert len({order[0] for order in of_anna}) == len(NAMES)
    assert of_anna != [
        chosen(targets, "affinity", caller=Caller("zoe", "sales"), safety_identifier=user) for user in users
    ]
    assert of_anna != [chosen(targets, "affinity", caller=anna, prompt_cache_key=user) for user in users]


def test_the_calls_of_a_hot_key_spread(targets):
    """So many in a minute to each target in turn; other keys, and the next minute, begin with the first one."""
    now_s = [0.0]
    hot_keys = HotKeys(lambda: now_s[0])

    def ask(key: str, count: int) -> list[str]:
        asked = {"hot_keys": hot_keys, "most": 3, "prompt_cache_key": key}
        return [chosen(targets, "affinity", **asked)[0] for _ in range(count)]

    ranked = chosen(targets, "affinity", prompt_cache_key="hot")
    firsts = ask("hot", 14)

    assert firsts == [name for name in [*ranked, ranked[0]] for _ in range(3)][:14]
    assert len(set(ask("cool", 3))) == 1
    now_s[0] = 60.0
    assert ask("hot", 3) == [ranked[0]] * 3
    assert chosen(targets, "affinity", prompt_cache_key="hot") == ranked


def test_a_call_of_a_hot_key_can_be_sent_to_every_target(targets):
    """The others follow the one that is its turn."""
    hot_keys = HotKeys()
    orders = [chosen(targets, "affinity", hot_keys=hot_keys, most=1, prompt_cache_key="hot") for _ in NAMES]

    assert all(sorted(order) == [*NAMES] for order in orders)
    assert sorted(order[0] for order in orders) == [*NAMES]


def test_keys_that_are_counted_are_bounded():
    """The one that was counted first is forgotten."""
    hot_keys = HotKeys(lambda: 0.0)
    for number in range(MAX_KEYS + 1):
        hot_keys.count(str(number).encode())

    assert hot_keys.count(b"1") == 1
    assert hot_keys.count(b"0") == 0
