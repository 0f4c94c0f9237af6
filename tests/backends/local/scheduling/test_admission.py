"""Who is let in."""

from contextlib import ExitStack

import pytest

from backends.local.decoding.job import Job, Options, Step
from backends.local.scheduling.admission import Admission
from backends.local.scheduling.costs import Costs
from proxy.wire.errors import BackendError, RequestError, envelope

COSTS = Costs(step_s=0.01, slope=0.1, prefill_s_per_token=0.001, kv_bytes_per_token=100, workers=2)


class House:
    """An admission and whoever is in."""

    def __init__(self, max_waiting=100, kv_bytes=None, max_wait_s=1000.0, costs=COSTS):
        self.now = 0.0
        self.admission = Admission(max_waiting, 1, kv_bytes, max_wait_s, clock=lambda: self.now)
        self.admission.calibrated(costs)
        self.inside = {}

    def enter(self, number, prompt=100, max_tokens=100, **other):
        job = Job(number, [0] * prompt, Options(max_tokens, frozenset(), **other))
        place = ExitStack()
        place.enter_context(self.admission.admitted(job))
        self.inside[number] = place

    def begin(self, *numbers):
        for number in numbers:
            self.admission.see(Step(number, cached_tokens=0))

    def leave(self, number):
        self.inside.pop(number).close()

    def refused(self, number=99, error=BackendError, **job):
        with pytest.raises(error) as refused:
            self.enter(number, **job)
        return refused.value


def test_as_many_may_wait_as_the_config_says():
    """On top of those that a worker takes at once, whether or not they have begun yet."""
    house = House(max_waiting=3)
    for number in range(5):
        house.enter(number)
    error = house.refused()

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == "3 calls wait for this model already; the limit is 3."
    assert int(error.headers["Retry-After"]) >= 1


def test_those_who_have_begun_wait_no_more():
    """A batch takes many at once."""
    house = House(max_waiting=3)
    for number in range(5):
        house.enter(number)
    house.begin(0, 1, 2, 3, 4)
    for number in range(5, 8):
        house.enter(number)

    assert house.refused().message == "3 calls wait for this model already; the limit is 3."


def test_whoever_leaves_gives_up_his_place():
    """Where he was does not matter."""
    house = House(max_waiting=1)
    for number in range(3):
        house.enter(number)
    house.begin(0, 1)
    house.refused()
    house.leave(0)
    house.enter(3)
    house.refused()
    house.leave(3)
    house.enter(4)


def test_of_two_hundred_callers_at_once_those_get_in_for_whom_there_is_room():
    house = House(max_waiting=32)
    refusals = 0
    for number in range(200):
        try:
            house.enter(number)
        except BackendError as error:
            refusals += error.status == 429

    assert (len(house.inside), refusals) == (34, 166)


def test_with_no_place_to_wait_a_free_worker_is_still_there():
    house = House(max_waiting=0)
    house.enter(1)
    house.enter(2)
    house.refused()


def test_memory_is_for_prompts_and_all_that_answers_may_become():
    """Two of 200 tokens fit, a third one does not until one has left."""
    house = House(kv_bytes=500 * 100)
    house.enter(1)
    house.enter(2)
    error = house.refused()
    house.leave(1)
    house.enter(3)

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == "The memory for answers of this model is taken."
    assert int(error.headers["Retry-After"]) >= 1


def test_what_can_never_fit_is_told_so():
    """Coming back later would be of no use."""
    error = House(kv_bytes=500 * 100).refused(error=RequestError, prompt=200, max_tokens=301)

    assert (error.status, error.code, error.param) == (400, "local_model_memory", "max_output_tokens")
    assert error.message == "The input and max_output_tokens come to 501 tokens; this model has memory for 500."


def test_a_model_of_unknown_size_is_not_counted():
    house = House(kv_bytes=1, costs=Costs(0.01, 0.1, 0.001, 0, 1))
    house.enter(1, max_tokens=10**6)


def test_memory_is_held_before_the_model_was_measured():
    """What a token takes is known by then; how long it takes is not."""
    admission = Admission(100, 1, 500 * 100, 1000.0, kv_bytes_per_token=100)
    first, second = (Job(number, [0] * 100, Options(300, frozenset())) for number in (1, 2))

    with admission.admitted(first), pytest.raises(BackendError) as refused, admission.admitted(second):
        pass
    assert refused.value.message == "The memory for answers of this model is taken."


def test_a_refusal_is_told_as_a_limit_on_requests():
    """As OpenAI tells its own, beside the code that says whose it is."""
    house = House(max_waiting=0)
    house.enter(1)
    house.enter(2)

    assert envelope(house.refused())["error"] == {
        "message": "0 calls wait for this model already; the limit is 0.",
        "type": "requests", "param": None, "code": "local_model_busy",
    }  # fmt: skip


def test_nobody_waits_longer_than_the_config_says():
    """By what it costs here, and how much those ahead will yet have."""
    house = House(max_wait_s=2.0)
    for number in range(40):
        house.enter(number, max_tokens=1000, top_logprobs=5)  # these share no batch
        if house.admission.wait_s > 2:
            break
    error = house.refused()
    wait_s = house.admission.wait_s

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == f"An answer would begin in about {wait_s:.0f} s; the limit is 2 s."
    assert int(error.headers["Retry-After"]) == max(1, -(-(wait_s - 2) // 1))
    assert len(house.inside) == pytest.approx(2 * 2 / (0.1 + 64 * 0.01), abs=2)


def test_nobody_waits_where_nobody_waits():
    """Those that have begun may all be in one batch while another worker is free."""
    house = House(max_wait_s=0.001)
    for number in range(2):
        house.enter(number)
    house.begin(0, 1)
    house.enter(2)
    house.refused()


def test_a_batch_is_quicker_than_its_jobs_one_by_one():
    """So is the wait for it."""

    def wait_s(**other):
        house = House()
        for number in range(30):
            house.enter(number, **other)
        return house.admission.wait_s

    assert wait_s(prompt=2) < wait_s(prompt=2, grammar="g") / 3


def test_what_is_done_is_not_waited_for():
    """Tokens that came, and answers that turn out to be short."""
    house = House()
    for number in range(6):
        house.enter(number, max_tokens=64)
    house.begin(0, 1)
    at_first = house.admission.wait_s
    house.admission.see(Step(0, [(5, None, ())] * 40))
    later = house.admission.wait_s
    house.admission.see(Step(0, [], "stop"))
    house.admission.see(Step(1, [], "stop"))
    house.leave(0)
    house.leave(1)

    assert at_first > later > house.admission.wait_s > 0


def test_an_answer_of_unusual_length_is_not_taken_to_be_over():
    """What has more tokens than most has some left."""
    house = House()
    for number in range(3):
        house.enter(number, max_tokens=10**6)
    house.begin(0, 1)
    for number in range(2):
        house.admission.see(Step(number, [(5, None, ())] * 100_000))

    assert house.admission.wait_s > 0.3


@pytest.mark.parametrize(
    ("took", "at_least", "at_most"), [(1, 0.9, 1.1), (3, 2.8, 3.1), (0.2, 0.15, 0.3), (1000, 15, 20)]
)
def test_it_is_told_by_how_long_it_takes_in_fact(took, at_least, at_most):
    """A shared machine, longer prompts: what was measured at the start is not what it costs now."""
    house = House()
    for number in range(4):
        house.enter(number, max_tokens=64)
    at_first = house.admission.wait_s
    for number in range(100, 150):
        house.enter(number, prompt=100, max_tokens=64)
        house.begin(number)
        house.now += took * (100 * 0.001 + 64 * 0.01)
        house.admission.see(Step(number, [(5, None, ())] * 64, "length"))
        house.leave(number)

    assert at_least * at_first <= house.admission.wait_s <= at_most * at_first


def test_retry_after_is_a_time_that_somebody_may_wait():
    house = House(max_wait_s=0.001, max_waiting=10**6, costs=Costs(10.0, 1.0, 1.0, 0, 1))
    house.enter(1, prompt=10**6)
    house.enter(2)

    assert house.refused().headers == {"Retry-After": "600"}


def test_steps_of_those_who_have_left_are_no_news():
    House().admission.see(Step(7, [], "stop"))
