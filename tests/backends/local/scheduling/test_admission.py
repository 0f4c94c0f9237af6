"""Tests of admission."""

from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest

from backends.local.decoding.job import DecodingOptions, DecodingStep, Job, Token
from backends.local.scheduling.admission import JobAdmission
from backends.local.scheduling.costs import Costs
from proxy.wire.errors import BackendError, RequestError, envelope

COSTS = Costs(step_s=0.01, slope=0.1, prefill_s_per_token=0.001, kv_bytes_per_token=100, workers=2)


class AdmissionFixture:
    """An admission with a clock, and the jobs that it has admitted."""

    def __init__(self, max_waiting=100, kv_bytes=None, max_wait_s=1000.0, costs=COSTS):
        self.now = 0.0
        self.admission = JobAdmission(max_waiting, 1, kv_bytes, max_wait_s, clock=lambda: self.now)
        self.admission.set_costs(costs)
        self.places = {}

    def enter(self, number, prompt=100, max_tokens=100, *, team="", **other):
        job = Job(number, [0] * prompt, DecodingOptions(max_tokens, frozenset(), **other), team=team)
        place = ExitStack()
        place.enter_context(self.admission.admit(job))
        self.places[number] = place

    def start(self, *numbers):
        for number in numbers:
            self.admission.record_step(DecodingStep(number, cached_tokens=0))

    def leave(self, number):
        self.places.pop(number).close()

    def refused(self, number=99, error=BackendError, **job):
        with pytest.raises(error) as refused:
            self.enter(number, **job)
        return refused.value


def test_the_number_of_waiting_jobs_is_limited():
    """In addition to those that a worker takes at once, whether they have started or not."""
    fixture = AdmissionFixture(max_waiting=3)
    for number in range(5):
        fixture.enter(number)
    error = fixture.refused()

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == "3 calls are waiting for this model; the limit is 3."
    assert int(error.headers["Retry-After"]) >= 1


def test_started_jobs_do_not_count_as_waiting():
    """A batch starts many at once."""
    fixture = AdmissionFixture(max_waiting=3)
    for number in range(5):
        fixture.enter(number)
    fixture.start(0, 1, 2, 3, 4)
    for number in range(5, 8):
        fixture.enter(number)

    assert fixture.refused().message == "3 calls are waiting for this model; the limit is 3."


def test_a_job_that_leaves_frees_its_place():
    """Whether it waited or ran."""
    fixture = AdmissionFixture(max_waiting=1)
    for number in range(3):
        fixture.enter(number)
    fixture.start(0, 1)
    fixture.refused()
    fixture.leave(0)
    fixture.enter(3)
    fixture.refused()
    fixture.leave(3)
    fixture.enter(4)


def test_without_waiting_places_a_free_worker_takes_a_job():
    fixture = AdmissionFixture(max_waiting=0)
    fixture.enter(1)
    fixture.enter(2)
    fixture.refused()


def test_memory_is_reserved_for_the_prompt_and_the_longest_answer():
    """Two jobs of 200 tokens fit; a third one is refused until one has left."""
    fixture = AdmissionFixture(kv_bytes=500 * 100)
    fixture.enter(1)
    fixture.enter(2)
    error = fixture.refused()
    fixture.leave(1)
    fixture.enter(3)

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == "The memory for answers of this model is in use; retry later."
    assert int(error.headers["Retry-After"]) >= 1


def test_a_job_that_can_never_fit_is_a_bad_request():
    """A later retry would fail, too."""
    error = AdmissionFixture(kv_bytes=500 * 100).refused(error=RequestError, prompt=200, max_tokens=301)

    assert (error.status, error.code, error.param) == (400, "local_model_memory", "max_output_tokens")
    assert error.message == "The input and max_output_tokens come to 501 tokens; this model has memory for 500."


def test_without_a_known_token_size_memory_is_not_limited():
    fixture = AdmissionFixture(kv_bytes=1, costs=Costs(0.01, 0.1, 0.001, 0, 1))
    fixture.enter(1, max_tokens=10**6)


def test_memory_is_reserved_before_the_model_is_measured():
    """The size of a token is known by then; its time is not."""
    admission = JobAdmission(100, 1, 500 * 100, 1000.0, kv_bytes_per_token=100)
    first, second = (Job(number, [0] * 100, DecodingOptions(300, frozenset())) for number in (1, 2))

    with admission.admit(first), pytest.raises(BackendError) as refused, admission.admit(second):
        pass
    assert refused.value.message == "The memory for answers of this model is in use; retry later."


def test_a_refusal_has_the_error_type_of_a_request_limit():
    """As OpenAI does it, with a code of our own."""
    fixture = AdmissionFixture(max_waiting=0)
    fixture.enter(1)
    fixture.enter(2)

    assert envelope(fixture.refused())["error"] == {
        "message": "0 calls are waiting for this model; the limit is 0.",
        "type": "requests", "param": None, "code": "local_model_busy",
    }  # fmt: skip


@pytest.mark.parametrize("slope", [0.0, 0.1, 3.0])
def test_the_bound_of_the_waiting_time_holds(slope):
    """Whatever the jobs are and however far they are."""
    fixture = AdmissionFixture(costs=replace(COSTS, slope=slope))
    random = Random(1)
    for number in range(60):
        length, team = random.choice((2, 500)), random.choice("ab")
        alone = random.choice((None, 5))
        fixture.enter(number, prompt=length, max_tokens=random.choice((16, 4096)), team=team, top_logprobs=alone)
        if random.random() < 0.5:
            fixture.start(number)
            fixture.admission.record_step(DecodingStep(number, [Token(1)] * random.choice((1, 100))))
        if random.random() < 0.3:
            fixture.leave(random.choice([*fixture.places]))
        for each in "abc":
            assert fixture.admission.wait_s(each) <= fixture.admission.most_wait_s

    assert fixture.admission.wait_s("c") > 0

    for number in [*fixture.places]:
        fixture.leave(number)

    assert fixture.admission.most_wait_s == 0


def test_the_waiting_time_is_limited():
    """It is estimated from measured costs and the remaining tokens of the jobs ahead."""
    fixture = AdmissionFixture(max_wait_s=2.0)
    for number in range(40):
        fixture.enter(number, max_tokens=1000, top_logprobs=5)  # these run alone
        if fixture.admission.wait_s("") > 2:
            break
    error = fixture.refused()
    wait_s = fixture.admission.wait_s("")

    assert (error.status, error.code) == (429, "local_model_busy")
    assert error.message == f"The answer would start in about {wait_s:.0f} s; the limit is 2 s."
    assert int(error.headers["Retry-After"]) == max(1, -(-(wait_s - 2) // 1))
    assert len(fixture.places) == pytest.approx(2 * 2 / (0.1 + 64 * 0.01), abs=2)


def test_without_waiting_jobs_there_is_no_waiting_time():
    """All started jobs may be in one batch while another worker is free."""
    fixture = AdmissionFixture(max_wait_s=0.001)
    for number in range(2):
        fixture.enter(number)
    fixture.start(0, 1)
    fixture.enter(2)
    fixture.refused()


def test_jobs_in_batches_wait_less_than_jobs_that_run_alone():

    def wait_s(**other):
        fixture = AdmissionFixture()
        for number in range(30):
            fixture.enter(number, **other)
        return fixture.admission.wait_s("")

    assert wait_s(prompt=2) < wait_s(prompt=2, grammar="g") / 3


def test_finished_work_reduces_the_waiting_time():
    """Both generated tokens and answers that turn out to be short."""
    fixture = AdmissionFixture()
    for number in range(6):
        fixture.enter(number, max_tokens=64)
    fixture.start(0, 1)
    before = fixture.admission.wait_s("")
    fixture.admission.record_step(DecodingStep(0, [(5, None, ())] * 40))
    later = fixture.admission.wait_s("")
    fixture.admission.record_step(DecodingStep(0, [], "stop"))
    fixture.admission.record_step(DecodingStep(1, [], "stop"))
    fixture.leave(0)
    fixture.leave(1)

    assert before > later > fixture.admission.wait_s("") > 0


def test_an_answer_longer_than_usual_still_has_remaining_tokens():
    fixture = AdmissionFixture()
    for number in range(3):
        fixture.enter(number, max_tokens=10**6)
    fixture.start(0, 1)
    for number in range(2):
        fixture.admission.record_step(DecodingStep(number, [(5, None, ())] * 100_000))

    assert fixture.admission.wait_s("") > 0.3


@pytest.mark.parametrize(
    ("ratio", "at_least", "at_most"), [(1, 0.9, 1.1), (3, 2.8, 3.1), (0.2, 0.15, 0.3), (1000, 15, 20)]
)
def test_the_waiting_time_follows_the_real_speed(ratio, at_least, at_most):
    """On a shared machine, or with longer prompts, the costs differ from the measurement."""
    fixture = AdmissionFixture()
    for number in range(4):
        fixture.enter(number, max_tokens=64)
    before = fixture.admission.wait_s("")
    for number in range(100, 150):
        fixture.enter(number, prompt=100, max_tokens=64)
        fixture.start(number)
        fixture.now += ratio * (100 * 0.001 + 64 * 0.01)
        fixture.admission.record_step(DecodingStep(number, [(5, None, ())] * 64, "length"))
        fixture.leave(number)

    assert at_least * before <= fixture.admission.wait_s("") <= at_most * before


def test_retry_after_is_at_most_ten_minutes():
    fixture = AdmissionFixture(max_wait_s=0.001, max_waiting=10**6, costs=Costs(10.0, 1.0, 1.0, 0, 1))
    fixture.enter(1, prompt=10**6)
    fixture.enter(2)

    assert fixture.refused().headers == {"Retry-After": "600"}


def test_steps_of_jobs_that_have_left_are_ignored():
    AdmissionFixture().admission.record_step(DecodingStep(7, [], "stop"))


def test_a_gpu_may_have_less_memory_than_configured():
    """Until the model is loaded on another device."""
    fixture = AdmissionFixture(kv_bytes=100_000, costs=replace(COSTS, max_kv_bytes=30_000))
    on_gpu = fixture.refused(error=RequestError, prompt=300, max_tokens=100)
    fixture.admission.set_costs(COSTS)
    fixture.enter(1, prompt=300, max_tokens=100)

    assert on_gpu.code == "local_model_memory"
    assert "this model has memory for 300" in on_gpu.message


def test_the_memory_of_a_gpu_counts_without_a_limit():
    fixture = AdmissionFixture(kv_bytes=None, costs=replace(COSTS, max_kv_bytes=0))

    assert fixture.refused(error=RequestError).code == "local_model_memory"
