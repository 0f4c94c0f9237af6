"""Whether an engine that lives still gets on: a call of the library that never comes back is seen by nothing else.

A job that nobody waits for any more ends within one step, and nothing is said of it; one that does not end keeps its
worker. So it is not looked for itself: when somebody waits, something must come, or no worker is left that makes it.
"""

from collections.abc import Container, Sequence

from backends.local.decoding.job import Job, Step

# How long nothing may come, beside what loading the model took, twice, for it may be loaded anew meanwhile, and what
# reading the prompts that it was given should take, so many times: long ones take more than was measured.
LONGEST_S, TIMES_LOADING, TIMES_READING = 60.0, 2, 20


class Progress:
    """Told of all that goes to an engine and comes from it. Figures only: time passes by `wait`."""

    def __init__(self, loading_s: float, prefill_s_per_token: float) -> None:
        self.stuck_s = 0.0  # so long nothing has come while somebody waited
        self._loading_s = loading_s
        self._prefill_s_per_token = prefill_s_per_token
        self._reading: dict[int, int] = {}  # how many tokens of which prompts, the cancelled ones too

    def give(self, job: Job) -> None:
        self._reading[job.id] = len(job.prompt)

    def see(self, steps: Sequence[Step], waited_for: Container[int]) -> None:
        """Something has come: a worker is free to take what comes next, whatever becomes of cancelled jobs."""
        self.stuck_s = 0.0
        read = {step.job for step in steps if step.tokens or step.finish}
        if read and self._reading:
            self._reading = {
                job: tokens for job, tokens in self._reading.items() if job not in read and job in waited_for
            }

    def wait(self, time_s: float, *, somebody: bool) -> bool:
        """So much time has passed; whether it may go on like this."""
        self.stuck_s = self.stuck_s + time_s if somebody else 0.0
        reading_s = sum(self._reading.values()) * self._prefill_s_per_token
        return self.stuck_s <= LONGEST_S + TIMES_LOADING * self._loading_s + TIMES_READING * reading_s
