"""The budget of one request's preparation, in all that spends it."""

import threading

import pytest

from backends.local.model.template_sandbox import WORK_BUDGET
from backends.local.request import read_request
from backends.local.request.parameters import GenerationParameters
from backends.local.work_budget import (
    REQUEST_UNITS,
    PreparationCancelled,
    WorkBudget,
    WorkLimitReached,
    current_budget,
)
from proxy.wire.errors import RequestError

DEFAULTS = GenerationParameters(100, 0.0)


def test_units_are_spent_until_the_limit():
    budget = WorkBudget(10)
    budget.spend(10)
    with pytest.raises(WorkLimitReached):
        budget.spend(1)


def test_a_cancelled_budget_ends_the_work():
    """Whatever remains; also without spending anything."""
    budget = WorkBudget(10)
    budget.cancel()

    for check in (budget.check, lambda: budget.spend(1)):
        with pytest.raises(PreparationCancelled):
            check()


def test_each_thread_has_a_budget_of_its_own():
    """Outside of a request nothing is shared."""
    budget, others = WorkBudget(10), []
    with budget:
        thread = threading.Thread(target=lambda: others.append(current_budget()))
        thread.start()
        thread.join()
        inside = current_budget()

    assert inside is budget
    assert len({id(each) for each in (budget, *others, current_budget())}) == 3
    assert current_budget().remaining == REQUEST_UNITS


def prepare(model, budget, **body):
    with budget:
        return read_request(body, model, DEFAULTS)


def test_rendering_and_tokenizing_spend_the_budget(model):
    short, long = WorkBudget(), WorkBudget()
    prepare(model, short, input="Hi")
    prepare(model, long, input="Hi " * 60)

    assert REQUEST_UNITS > short.remaining > long.remaining + 100 * 3 * 59


@pytest.mark.parametrize(("units", "message"), [(100, "chat template refused the input"), (20_000, "context window")])
def test_a_prompt_that_costs_more_than_the_rest_is_refused(model, units, message):
    """The template and the tokenizer each end where the budget does."""
    with pytest.raises(RequestError, match=message) as refused:
        prepare(model, WorkBudget(units), input="Hi " * 60)

    assert refused.value.param == "input"


def test_renderings_of_a_truncated_conversation_share_the_budget(model):
    """Each drops more turns, but none gets more work than the request has left."""
    turns = [{"role": "user", "content": "x " * 40} for _ in range(200)]
    budget = WorkBudget()
    prepare(model, budget, input=turns, truncation="auto")

    assert 0 < REQUEST_UNITS - budget.remaining < WORK_BUDGET
    with pytest.raises(RequestError):
        prepare(model, WorkBudget((REQUEST_UNITS - budget.remaining) // 2), input=turns, truncation="auto")


def test_rendering_ends_for_a_disconnected_client(model):
    budget = WorkBudget()
    budget.cancel()
    with budget, pytest.raises(PreparationCancelled):
        model.template.render([{"role": "user", "content": "Hi"}], [])
