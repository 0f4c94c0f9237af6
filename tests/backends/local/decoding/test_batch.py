"""Tests of one call of the library for a batch."""

import random
import threading

import pytest

from backends.local.decoding.batch import BatchRun, run_batch
from backends.local.decoding.job import DecodingOptions, Job, Token
from tests.backends.local.decoding.run_log import RunLog

PROMPTS = [[5 + row, *range(20, 20 + length)] for row, length in enumerate((3, 9, 1, 4, 9, 6))]


def run(generator, vocabulary, jobs, prefix=()):
    run_log = RunLog()
    run_batch(generator, vocabulary, jobs, prefix, run_log.emit, run_log.end, on_step=run_log.on_step)
    return run_log


def jobs_of(prompts, max_tokens=12, **other):
    return [
        Job(number, prompt, DecodingOptions(max_tokens, frozenset(), **other)) for number, prompt in enumerate(prompts)
    ]


def answers(generator, vocabulary, jobs, prefix=()):
    run_log = run(generator, vocabulary, jobs, prefix)
    return [run_log.ids(job) for job in jobs]


def test_each_row_gets_the_answer_that_it_gets_alone(generator, random_model):
    """The lengths of the other rows make no difference."""
    jobs = jobs_of(PROMPTS)
    alone = [answers(generator, random_model.vocabulary, [job])[0] for job in jobs]
    run_log = run(generator, random_model.vocabulary, jobs)

    assert alone == [run_log.ids(job) for job in jobs]
    assert len({tuple(ids) for ids in alone}) == len(jobs)
    assert [[("length", "")]] * len(jobs) == [run_log.ends[job.id] for job in jobs]


def test_each_row_has_its_own_limit(generator, random_model):
    jobs = [Job(number, PROMPTS[0], DecodingOptions(number, frozenset())) for number in (1, 7, 3)]
    run_log = run(generator, random_model.vocabulary, jobs)

    assert [len(run_log.ids(job)) for job in jobs] == [1, 7, 3]


def test_each_row_has_its_own_stop_tokens(generator, random_model):
    """The stop token is not part of the answer."""
    (ids,) = answers(generator, random_model.vocabulary, jobs_of(PROMPTS[:1]))
    jobs = [
        Job(number, PROMPTS[0], DecodingOptions(12, frozenset(stops)))
        for number, stops in enumerate([(), ids[4:5], ids[:1]])
    ]
    run_log = run(generator, random_model.vocabulary, jobs)

    assert [ids, ids[:4], []] == [run_log.ids(job) for job in jobs]
    assert [run_log.ends[job.id][0][0] for job in jobs] == ["length", "stop", "stop"]


def test_the_end_token_of_the_model_is_a_stop_token_like_others(greeting_model):
    """It does not end a job that does not list it."""
    with greeting_model.loaded() as generator:
        prompt = [5, greeting_model.vocabulary.index("Ċ")]
        jobs = [
            Job(1, prompt, DecodingOptions(20, frozenset({greeting_model.end}))),
            Job(2, prompt, DecodingOptions(20, frozenset())),
        ]
        run_log = run(generator, greeting_model.vocabulary, jobs)

    assert [len(run_log.ids(job)) for job in jobs] == [3, 20]


def test_a_cancelled_row_ends_within_one_step(endless_model):
    """The other rows continue; a batch without open rows ends."""
    jobs = [
        Job(number, [5, 6], DecodingOptions(count, frozenset())) for number, count in enumerate((10**6, 200, 10**6))
    ]
    run_log = RunLog()

    def emit(job, token):
        run_log.emit(job, token)
        for each in jobs[::2]:
            each.cancelled = len(run_log.ids(each)) >= 5

    with endless_model.loaded() as generator:
        run_batch(generator, endless_model.vocabulary, jobs, (), emit, run_log.end)

    assert [len(run_log.ids(job)) for job in jobs] == [5, 200, 5]
    assert [run_log.ends[job.id] for job in jobs] == [[("stop", "")], [("length", "")], [("stop", "")]]


def test_on_step_is_called_once_for_all_rows_of_a_step(generator, random_model):
    """From the first own token of the shortest prompt to the last of the longest, and at the end."""
    jobs = jobs_of(PROMPTS, max_tokens=12)
    run_log = run(generator, random_model.vocabulary, jobs)
    spread = max(map(len, PROMPTS)) - min(map(len, PROMPTS))

    assert run_log.steps == 12 + spread + 1


def test_rows_that_have_ended_no_longer_complete_a_step(generator, random_model):
    """Also when they were the last rows of a step."""
    jobs = [Job(number, PROMPTS[0], DecodingOptions(count, frozenset())) for number, count in enumerate((9, 5, 2))]

    assert run(generator, random_model.vocabulary, jobs).steps == 9 + 1


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_a_callback_does_not_reach_the_library(generator, random_model, fault):
    """It would end the process. The row fails, the other one does not."""
    jobs = jobs_of(PROMPTS[:2])
    run_log = RunLog()

    def emit(job, token):
        if job is jobs[0]:
            raise fault
        run_log.emit(job, token)

    run_batch(generator, random_model.vocabulary, jobs, (), emit, run_log.end)

    assert [[job.id, run_log.ends[job.id][0][0], len(run_log.ids(job))] for job in jobs] == [
        [0, "failed", 0],
        [1, "length", 12],
    ]


def test_an_error_of_the_library_fails_all_rows(generator, random_model):
    """Each once, with the type of the error."""
    jobs = jobs_of(PROMPTS[:2], temperature=1.0, top_p=7.0)
    run_log = run(generator, random_model.vocabulary, jobs)

    assert [len(run_log.ends[job.id]) for job in jobs] == [1, 1]
    assert run_log.ends[0][0][0] == "failed"
    assert run_log.ends[0][0][1].startswith("ValueError at ")


def test_a_prefix_does_not_change_the_answers(generator, random_model):
    """Neither when it is kept nor when it is read for the first time."""
    prefix = list(range(30, 110))
    jobs = jobs_of([[*prefix, *prompt] for prompt in PROMPTS])
    plain = answers(generator, random_model.vocabulary, jobs)
    read, kept = (answers(generator, random_model.vocabulary, jobs, prefix) for _ in range(2))

    assert plain == read == kept


def test_logprobs_are_emitted_for_jobs_that_want_them(generator, random_model):
    """Over the whole vocabulary, before temperature."""
    with_logprobs, without = DecodingOptions(3, frozenset(), top_logprobs=0), DecodingOptions(3, frozenset())
    run_log = run(generator, random_model.vocabulary, [Job(1, PROMPTS[0], with_logprobs), Job(2, PROMPTS[0], without)])

    assert all(token.logprob < 0 for token in run_log.tokens[1])
    assert [Token(token.id) for token in run_log.tokens[1]] == run_log.tokens[2]


def test_a_token_of_a_closed_row_is_ignored():
    run_log = RunLog()
    run = BatchRun(jobs_of([[1, 2]]), run_log.emit, run_log.end, run_log.on_step)
    run.fail_open_rows("gone")

    assert run.on_token(type("Result", (), {"batch_id": 0, "token_id": 5, "is_last": False}))
    assert (run_log.tokens, run_log.ends) == ({}, {0: [("failed", "gone")]})


def test_several_threads_can_run_batches_of_one_model(random_model):
    """Each job gets the answer that it gets alone."""
    shuffled = random.Random(1)
    batches = [
        jobs_of([[shuffled.randrange(300) for _ in range(shuffled.randrange(2, 30))] for _ in range(5)])
        for _ in range(8)
    ]
    with random_model.loaded(workers=2) as generator:
        alone = [answers(generator, random_model.vocabulary, jobs) for jobs in batches]
        together = [None] * len(batches)

        def work(number):
            together[number] = answers(generator, random_model.vocabulary, batches[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert alone == together
