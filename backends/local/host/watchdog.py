"""Detects an engine process that hangs: one that answers no pings, or whose jobs make no progress.

A call of the library that never returns blocks a worker, which pings do not show. A cancelled job ends within one step
and sends nothing, so single jobs are not watched: while jobs are running, some step must arrive, or no worker is left.
Time passes only by `tick`.
"""

from collections.abc import Container, Sequence

from backends.local.decoding.job import DecodingStep, Job

# How long no step may arrive: a fixed time, plus twice the loading time, because the model may be reloaded meanwhile,
# plus a multiple of the estimated time to read the pending prompts, because long ones take longer than measured.
MAX_STALL_S, LOADING_FACTOR, PREFILL_FACTOR = 60.0, 2, 20


class Watchdog:
    """Observes all messages of one engine process. `max_silence_s` is how long no message may arrive."""

    def __init__(self, max_silence_s: float) -> None:
        self.max_silence_s = max_silence_s
        self._silent_s = self._stalled_s = 0.0
        self._loading_s = self._prefill_s_per_token = 0.0
        # job -> tokens of a prompt that may not be read yet, cancelled jobs included
        self._prompts: dict[int, int] = {}

    def set_costs(self, loading_s: float, prefill_s_per_token: float) -> None:
        """Use what was measured while the model was loaded."""
        self._loading_s = loading_s
        self._prefill_s_per_token = prefill_s_per_token

    def record_message(self) -> None:
        """Record that the process has sent a message."""
        self._silent_s = 0.0

    def record_job(self, job: Job) -> None:
        """Record that a job was submitted."""
        self._prompts[job.id] = len(job.prompt)

    def record_steps(self, steps: Sequence[DecodingStep], live_jobs: Container[int]) -> None:
        """Record steps: a worker is left, so prompts of cancelled jobs no longer count."""
        self._stalled_s = 0.0
        read = {step.job for step in steps if step.tokens or step.finish}
        if read and self._prompts:
            self._prompts = {
                job: tokens for job, tokens in self._prompts.items() if job not in read and job in live_jobs
            }

    def tick(self, time_s: float, *, has_jobs: bool) -> str:
        """Let time pass; return why the process has to be killed, or "".

        Callers tick in turns of their loop, so the time in which a busy gateway received nothing does not count.
        """
        self._silent_s += time_s
        self._stalled_s = self._stalled_s + time_s if has_jobs else 0.0
        prefill_s = sum(self._prompts.values()) * self._prefill_s_per_token
        if self._stalled_s > MAX_STALL_S + LOADING_FACTOR * self._loading_s + PREFILL_FACTOR * prefill_s:
            return f"its jobs made no progress for {self._stalled_s:.0f} s"
        if self._silent_s >= self.max_silence_s:
            return f"it sent no message for {self._silent_s:.0f} s"
        return ""
