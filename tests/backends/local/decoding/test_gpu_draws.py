"""Tests of tokens that a GPU returns without having drawn them. Without a GPU, the CPU takes its place."""

from types import SimpleNamespace

import ctranslate2
import pytest

from backends.local.decoding.batch import run_batch
from backends.local.decoding.job import DecodingOptions, Job
from backends.local.decoding.sampling import MAX_MISDRAWS, is_misdrawn
from backends.local.decoding.top_logprobs import run_with_top_logprobs
from backends.local.host.device import Placement, load_generator
from backends.local.scheduling.prefix_cache import PrefixCache
from tests.backends.local.decoding.run_log import RunLog
from tests.backends.local.decoding.test_constrained import ConstrainedModel
from tests.backends.local.scheduling.scheduler_client import SchedulerClient

with_gpu = pytest.mark.skipif(ctranslate2.get_cuda_device_count() == 0, reason="for machines with a GPU")
PROMPT = [5, 6, 7]
BEYOND = ValueError("Invalid token ID 327: valid IDs are between 0 and 323")  # as the library raises it
ALWAYS = range(10**6)


class MisdrawingGpu:
    """The library's generator as a GPU that does not draw some tokens, counted from 1 over all rows and calls.

    Instead of the tokens in `last` it returns the last one of the vocabulary; for those in `beyond` its call fails.
    """

    device = "cuda"

    def __init__(self, generator, vocabulary, *, last=(), beyond=()):
        self._generator, self._last_id = generator, len(vocabulary) - 1
        self._last, self._beyond = last, beyond
        self._drawn = SimpleNamespace(tokens=0)

    @property
    def tokens(self):
        return self._drawn.tokens

    def generate_batch(self, *args, callback, **options):
        failed = False
        # The library drops a callback in a thread of the generator after the call: it must not be the last reference to it.
        drawn, last, beyond, last_id = self._drawn, self._last, self._beyond, self._last_id

        def on_token(result):
            nonlocal failed
            drawn.tokens += not failed
            failed = failed or drawn.tokens in beyond
            if failed:
                return True
            if drawn.tokens in last:
                result = SimpleNamespace(
                    batch_id=result.batch_id, token_id=last_id, log_prob=-12.0, logits=result.logits,
                    is_last=result.is_last,
                )  # fmt: skip
            return callback(result)

        self._generator.generate_batch(*args, callback=on_token, **options)
        if failed:
            raise BEYOND


def sampled(max_tokens=12, **other):
    return DecodingOptions(max_tokens, frozenset(), temperature=1.0, **other)


def run_rows(gpu, model, jobs):
    run_log = RunLog()
    run_batch(gpu, model.vocabulary, jobs, (), run_log.emit, run_log.end)
    return [(len(run_log.ids(job)), *ends_of(run_log, job)) for job in jobs]


def ends_of(run_log, job):
    """The ends of a job; those of a failure with the type of the error."""
    return [(end, message.partition(" ")[0]) for end, message in run_log.ends[job.id]]


def test_a_row_leaves_its_batch_before_a_token_that_was_not_drawn(generator, random_model):
    """It continues in a later batch, and the other row is not affected."""
    jobs = [Job(number, PROMPT, sampled()) for number in range(2)]
    gpu = MisdrawingGpu(generator, random_model.vocabulary, last={7})  # the fourth token of the first row

    assert run_rows(gpu, random_model, jobs) == [(3, ("preempted", "")), (12, ("length", ""))]


def test_all_rows_continue_when_a_call_fails_for_a_token_that_was_not_drawn(generator, random_model):
    """A row that has its answer does not."""
    jobs = [Job(number, PROMPT, sampled(max_tokens)) for number, max_tokens in enumerate((12, 2, 12))]
    gpu = MisdrawingGpu(generator, random_model.vocabulary, beyond={10})  # the fourth token of the last row

    assert run_rows(gpu, random_model, jobs) == [(4, ("preempted", "")), (2, ("length", "")), (3, ("preempted", ""))]


async def test_the_scheduler_completes_all_answers(generator, random_model):
    """In as many runs as needed."""
    gpu = MisdrawingGpu(generator, random_model.vocabulary, last={20}, beyond={5, 6, 50})
    client = SchedulerClient(random_model, gpu, 1, PrefixCache(0, 100), None)
    for number in range(4):
        client.submit(number, PROMPT, 30, temperature=1.0)
    await client.wait_for_end(*range(4))
    await client.scheduler.close()

    assert (set(client.ends.values()), gpu.tokens) == ({"length"}, 4 * 30 + 4)
    assert [len(client.tokens[number]) for number in range(4)] == [30] * 4


def test_a_row_that_never_gets_a_token_fails(generator, random_model):
    """With the error of the library. One that gets tokens now and then does not."""
    gpu = MisdrawingGpu(generator, random_model.vocabulary, beyond=ALWAYS)
    job, ends = Job(1, PROMPT, sampled()), []
    while not ends or ends[-1][1][0] == "preempted":
        ends += run_rows(gpu, random_model, [job])
        job = job.continuation((), allows_free_text=True)

    assert ends == [(0, ("preempted", ""))] * MAX_MISDRAWS + [(0, ("failed", "ValueError"))]
    assert job.continuation([5], allows_free_text=True).misdraws == 0


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_greedy_answers_and_those_of_a_cpu_are_not_checked(generator, random_model, device):
    """The last token may be right, and an error is one."""
    options = DecodingOptions(12, frozenset()) if device == "cuda" else sampled()
    gpu = MisdrawingGpu(generator, random_model.vocabulary, last={4}, beyond={9})
    gpu.device = device

    assert run_rows(gpu, random_model, [Job(1, PROMPT, options)]) == [(8, ("failed", "ValueError"))]


def test_an_answer_with_logprobs_continues_with_another_token(generator, random_model):
    job, run_log = Job(1, PROMPT, sampled(top_logprobs=2)), RunLog()
    gpu = MisdrawingGpu(generator, random_model.vocabulary, last={1, 5, 6}, beyond={3, 9, 10})
    run_with_top_logprobs(gpu, random_model.vocabulary, [job], (), run_log.emit, run_log.end)

    assert (len(run_log.ids(job)), ends_of(run_log, job), gpu.tokens) == (12, [("length", "")], 18)


def test_an_answer_with_logprobs_that_gets_no_token_fails(generator, random_model):
    job, run_log = Job(1, PROMPT, sampled(top_logprobs=2)), RunLog()
    gpu = MisdrawingGpu(generator, random_model.vocabulary, beyond=ALWAYS)
    run_with_top_logprobs(gpu, random_model.vocabulary, [job], (), run_log.emit, run_log.end)

    assert (run_log.ids(job), ends_of(run_log, job)) == ([], [("failed", "ValueError")])


def test_an_answer_under_a_grammar_gets_a_token_that_the_grammar_allows(generator, random_model):
    """One that is sampled from the logits."""
    gpu = MisdrawingGpu(generator, random_model.vocabulary, last={1, 5}, beyond={3, 8, 9})
    model = ConstrainedModel(random_model, gpu)
    job = model.job("start: /(?s:.*)/", max_tokens=12, temperature=1.0, stop_ids=set())
    run_log = model.run(job)

    assert (len(run_log.ids(job)), ends_of(run_log, job)) == (12, [("length", "")])
    assert random_model.vocabulary.index("</tool_response>") == len(random_model.vocabulary) - 1
    assert model.decode(run_log.ids(job)).count("</tool_response>") == 0


def test_an_answer_under_a_grammar_that_gets_no_token_fails(generator, random_model):
    gpu = MisdrawingGpu(generator, random_model.vocabulary, beyond=ALWAYS)
    model = ConstrainedModel(random_model, gpu)
    job = model.job("start: /(?s:.*)/", max_tokens=12, temperature=1.0)
    run_log = model.run(job)

    assert ends_of(run_log, job) == [("failed", "ValueError")]


@pytest.mark.parametrize(
    ("token_id", "logprob", "misdrawn"), [(98, -30.0, False), (99, -7.9, False), (99, -8.1, True), (99, -1e10, True)]
)
def test_the_last_token_is_misdrawn_when_it_is_unlikely(token_id, logprob, misdrawn):
    assert is_misdrawn(SimpleNamespace(token_id=token_id, log_prob=logprob), 100) is misdrawn


def test_probabilities_that_are_no_numbers_are_an_error():
    """The library then returns the last token every time."""
    with pytest.raises(ArithmeticError, match="too large for its type"):
        is_misdrawn(SimpleNamespace(token_id=99, log_prob=float("nan")), 100)


@with_gpu
@pytest.mark.parametrize("compute_type", ["bfloat16", "float16", "float32"])
def test_no_answer_of_a_gpu_fails(random_model, compute_type):
    """Of 40,000 tokens in bfloat16 about ten are not drawn. The library pads this vocabulary."""
    generator = load_generator(*random_model, Placement("cuda", compute_type=compute_type))
    jobs = [Job(number, PROMPT, sampled(100)) for number in range(400)]
    ends = [ends for at in range(0, 400, 40) for _, *ends in run_rows(generator, random_model, jobs[at : at + 40])]

    assert len(random_model.vocabulary) % 8
    assert {end for each in ends for end, _ in each} <= {"length", "preempted"}
