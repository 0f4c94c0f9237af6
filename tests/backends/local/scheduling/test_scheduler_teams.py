"""Tests of the scheduler when several teams share a model. Waiting is counted in answers, not in seconds."""

from tests.backends.local.scheduling.scheduler_client import FOREVER, compile_grammars, prompt, run_scheduler

BUSY = 60


async def ends_before(client, number):
    """Wait for the end of a job; return how many other jobs ended meanwhile."""
    before = len(client.ends)
    await client.wait_for_end(number)
    return len(client.ends) - before - 1


async def test_a_single_job_waits_for_a_few_answers_of_a_busy_team(random_model):
    """Not for its queue, also when it comes again. Each job of the busy team runs alone."""
    async with run_scheduler(random_model) as client:
        for number in range(BUSY):
            client.submit(number, prompt(number), 5, team="busy", top_logprobs=1)
        waited = []
        for number in range(BUSY, BUSY + 3):
            client.submit(number, prompt(number), 5, team="quiet")
            waited.append(await ends_before(client, number))
        busy_left = BUSY - sum(number < BUSY for number in client.ends)
        await client.wait_for_end(*range(BUSY))

    assert max(waited) <= 3
    assert busy_left > 0


async def test_jobs_of_two_teams_share_a_batch(endless_model):
    """Fairness costs no throughput where jobs are alike."""
    batches = []
    async with run_scheduler(endless_model) as client:
        started = client.scheduler._start
        client.scheduler._start = lambda batch: batches.append([each.job.id for each in batch]) or started(batch)
        client.submit(0, [5, 6], FOREVER)
        await client.wait_for_start(0)
        for number in range(1, 5):
            client.submit(number, [5, 6], team="busy" if number % 2 else "quiet")
        client.scheduler.cancel(0)
        await client.wait_for_end(1, 2, 3, 4)

    assert sorted(batches[-1]) == [1, 2, 3, 4]


async def test_teams_take_turns(random_model):
    """One worker, jobs that run alone: their answers end in the order of turns."""
    async with run_scheduler(random_model) as client:
        client.submit(0, prompt(0), FOREVER, top_logprobs=1)
        await client.wait_for_start(0)
        for number, team in enumerate("aaaabbc", 1):
            client.submit(number, prompt(number), 2, team=team, top_logprobs=1)
        client.scheduler.cancel(0)
        await client.wait_for_end(*range(1, 8))

    assert list(client.ends) == [1, 5, 7, 2, 6, 3, 4]


async def test_interrupted_jobs_of_a_busy_team_do_not_delay_another_team(random_model):
    """A crowd that leaves a batch because of its grammar continues alone, one job after another."""
    async with run_scheduler(random_model, grammars=compile_grammars(random_model)) as client:
        for number in range(20):
            client.submit(number, prompt(number), 30, team="busy", grammar="start: /[A-Z ]*/", allows_free_text=True)
        await client.wait_for_start(0)
        client.submit(100, prompt(100), 5, team="quiet", temperature=1e-5)
        waited = await ends_before(client, 100)
        await client.wait_for_end(*range(20))

    assert waited <= 4
