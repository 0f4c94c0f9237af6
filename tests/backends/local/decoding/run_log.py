"""Records what a run emits."""


class RunLog:
    """Collects the tokens and ends of each job, and counts steps."""

    def __init__(self):
        self.tokens = {}
        self.ends = {}
        self.steps = 0

    def emit(self, job, token):
        self.tokens.setdefault(job.id, []).append(token)

    def end(self, job, end, message):
        self.ends.setdefault(job.id, []).append((end, message))

    def on_step(self):
        self.steps += 1

    def ids(self, job):
        return [token.id for token in self.tokens.get(job.id, [])]
