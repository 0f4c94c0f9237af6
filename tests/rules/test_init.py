"""All rules of a config together: what they follow, and the state of each."""

from policies import Policy, PolicyState, RequestCheck
from proxy.wire.event import FOLLOWED
from tests.examples import make_call, make_context
from tests.rules.samples import DELTA, ItemBudget, Stamp, make_rule, make_rules


class NamedState(Policy):
    """Adds the name of its state to the answer."""

    def request_check(self, state: PolicyState) -> RequestCheck:
        def check(call, context):
            context.add_header("x-state", state.name)
            return call

        return check


def test_events_are_followed_that_a_reply_check_reads():
    """Beside those that the gateway follows anyway; a rule that is off follows none."""
    assert make_rules(make_rule(Stamp())).followed == FOLLOWED
    assert make_rules(make_rule(ItemBudget())).followed == FOLLOWED | {DELTA}
    assert make_rules(make_rule(ItemBudget(), "off")).followed == FOLLOWED


async def test_each_rule_has_a_state_of_its_own():
    """Rules of one policy that count the same are numbered in their order: switching one off renames no other."""
    context = make_context()
    rules = [make_rule(NamedState(), "off"), make_rule(NamedState()), make_rule(NamedState(), name="other")]
    await make_rules(*rules).admit(make_call(), context)

    assert context.answer_headers == {"x-state": "namedstate-2, other"}
