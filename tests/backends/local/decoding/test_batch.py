"""One call of the library."""

import random
import threading

import pytest

from backends.local.decoding.batch import Batch, run_batch, sampling
from backends.local.decoding.job import Job, Options, Token
from tests.backends.local.decoding.heard import Heard

PROMPTS = [[5 + row, *range(20, 20 + length)] for row, length in enumerate((3, 9, 1, 4, 9, 6))]


def run(generator, vocabulary, jobs, prefix=()):
    heard = Heard()
    run_batch(generator, vocabulary, jobs, prefix, heard.emit, heard.ended, stepped=heard.stepped)
    return heard


def jobs_of(prompts, max_tokens=12, **other):
    return [Job(number, prompt, Options(max_tokens, frozenset(), **other)) for number, prompt in enumerate(prompts)]


def answers(generator, vocabulary, jobs, prefix=()):
    heard = run(generator, vocabulary, jobs, prefix)
    return [heard.ids(job) for job in jobs]


def test_together_everybody_gets_what_he_would_get_alone(generator, babbler):
    """Whatever the lengths of the others."""
    jobs = jobs_of(PROMPTS)
    alone = [answers(generator, babbler.vocabulary, [job])[0] for job in jobs]
    heard = run(generator, babbler.vocabulary, jobs)

    assert alone == [heard.ids(job) for job in jobs]
    assert len({tuple(ids) for ids in alone}) == len(jobs)
    assert [[("length", "")]] * len(jobs) == [heard.ends[job.id] for job in jobs]


def test_every_row_has_its_own_limit(generator, babbler):
    jobs = [Job(number, PROMPTS[0], Options(number, frozenset())) for number in (1, 7, 3)]
    heard = run(generator, babbler.vocabulary, jobs)

    assert [len(heard.ids(job)) for job in jobs] == [1, 7, 3]


def test_every_row_has_its_own_stop_tokens(generator, babbler):
    """The token that ends an answer is none of its own."""
    (ids,) = answers(generator, babbler.vocabulary, jobs_of(PROMPTS[:1]))
    jobs = [
        Job(number, PROMPTS[0], Options(12, frozenset(stops))) for number, stops in enumerate([(), ids[4:5], ids[:1]])
    ]
    heard = run(generator, babbler.vocabulary, jobs)

    assert [ids, ids[:4], []] == [heard.ids(job) for job in jobs]
    assert [heard.ends[job.id][0][0] for job in jobs] == ["length", "stop", "stop"]


def test_the_models_own_end_is_a_stop_token_like_others(greeter):
    """It does not end an answer that does not ask for it."""
    with greeter.loaded() as generator:
        prompt = [5, greeter.vocabulary.index("Ċ")]
        jobs = [Job(1, prompt, Options(20, frozenset({greeter.end}))), Job(2, prompt, Options(20, frozenset()))]
        heard = run(generator, greeter.vocabulary, jobs)

    assert [len(heard.ids(job)) for job in jobs] == [3, 20]


def test_a_row_that_is_cancelled_ends_within_a_step(clock):
    """And the others go on; a batch without rows ends."""
    jobs = [Job(number, [5, 6], Options(count, frozenset())) for number, count in enumerate((10**6, 200, 10**6))]
    heard = Heard()

    def emit(job, token):
        heard.emit(job, token)
        for each in jobs[::2]:
            each.cancelled = len(heard.ids(each)) >= 5

    with clock.loaded() as generator:
        run_batch(generator, clock.vocabulary, jobs, (), emit, heard.ended)

    assert [len(heard.ids(job)) for job in jobs] == [5, 200, 5]
    assert [heard.ends[job.id] for job in jobs] == [[("stop", "")], [("length", "")], [("stop", "")]]


def test_a_step_is_told_once_however_many_rows_it_has(generator, babbler):
    """From the first own token of the shortest prompt to the last of the longest, and at the end."""
    jobs = jobs_of(PROMPTS, max_tokens=12)
    heard = run(generator, babbler.vocabulary, jobs)
    spread = max(map(len, PROMPTS)) - min(map(len, PROMPTS))

    assert heard.steps == 12 + spread + 1


def test_a_step_is_complete_without_the_rows_that_ended(generator, babbler):
    """Also when those were the last ones of it."""
    jobs = [Job(number, PROMPTS[0], Options(count, frozenset())) for number, count in enumerate((9, 5, 2))]

    assert run(generator, babbler.vocabulary, jobs).steps == 9 + 1


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_a_callback_never_reaches_the_library(generator, babbler, fault):
    """It would end the process. The job that it concerns fails, the other one does not."""
    jobs = jobs_of(PROMPTS[:2])
    heard = Heard()

    def emit(job, token):
        if job is jobs[0]:
            raise fault
        heard.emit(job, token)

    run_batch(generator, babbler.vocabulary, jobs, (), emit, heard.ended)

    assert [[job.id, heard.ends[job.id][0][0], len(heard.ids(job))] for job in jobs] == [
        [0, "failed", 0],
        [1, "length", 12],
    ]


def test_what_the_library_refuses_has_failed(generator, babbler):
    """All of it, each once, in the library's words."""
    jobs = jobs_of(PROMPTS[:2], temperature=1.0, top_p=7.0)
    heard = run(generator, babbler.vocabulary, jobs)

    assert [len(heard.ends[job.id]) for job in jobs] == [1, 1]
    assert heard.ends[0][0][0] == "failed"
    assert heard.ends[0][0][1].startswith("ValueError: ")


def test_a_prefix_changes_nothing_but_the_time(generator, babbler):
    """Kept or read for the first time."""
    prefix = list(range(30, 110))
    jobs = jobs_of([[*prefix, *prompt] for prompt in PROMPTS])
    plain = answers(generator, babbler.vocabulary, jobs)
    read, kept = (answers(generator, babbler.vocabulary, jobs, prefix) for _ in range(2))

    assert plain == read == kept


def test_logprobs_are_there_for_those_who_asked(generator, babbler):
    """Of all that the vocabulary allows, before temperature."""
    asks, asks_not = Options(3, frozenset(), top_logprobs=0), Options(3, frozenset())
    heard = run(generator, babbler.vocabulary, [Job(1, PROMPTS[0], asks), Job(2, PROMPTS[0], asks_not)])

    assert all(token.logprob < 0 for token in heard.tokens[1])
    assert [Token(token.id) for token in heard.tokens[1]] == heard.tokens[2]


def test_a_row_that_has_ended_is_not_told_again():
    """Should the library ever do so."""
    heard = Heard()
    batch = Batch(jobs_of([[1, 2]]), heard.emit, heard.ended, heard.stepped)
    batch.fail("gone")

    assert batch.take(type("Result", (), {"batch_id": 0, "token_id": 5, "is_last": False}))
    assert (heard.tokens, heard.ends) == ({}, {0: [("failed", "gone")]})


@pytest.mark.parametrize(
    "greedy", [{}, {"temperature": 1e-40}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_k": 1}]
)
def test_one_token_to_choose_from_is_greedy(greedy):
    """However that is said: the library would divide by nearly nothing."""
    assert sampling(Options(1, frozenset(), **greedy), 1000) == {"sampling_topk": 1, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("asked", "top_k"),
    [
        ({}, 0),
        ({"top_k": 40}, 40),
        ({"top_k": 5000}, 1000),
        ({"top_p": 0.9}, 128),
        ({"top_p": 0.9, "top_k": 20}, 20),
        ({"top_p": 0.9, "top_k": 900}, 256),
    ],
)
def test_top_p_never_goes_without_top_k(asked, top_k):
    """The library would sort the whole vocabulary at every step; and it knows no top_k beyond that."""
    assert sampling(Options(1, frozenset(), temperature=0.7, **asked), 1000)["sampling_topk"] == top_k


def test_many_threads_may_run_batches_of_one_model(babbler):
    """Each gets what it would get alone."""
    shuffled = random.Random(1)
    lots = [
        jobs_of([[shuffled.randrange(300) for _ in range(shuffled.randrange(2, 30))] for _ in range(5)])
        for _ in range(8)
    ]
    with babbler.loaded(workers=2) as generator:
        alone = [answers(generator, babbler.vocabulary, jobs) for jobs in lots]
        together = [None] * len(lots)

        def work(number):
            together[number] = answers(generator, babbler.vocabulary, lots[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(lots))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert alone == together
