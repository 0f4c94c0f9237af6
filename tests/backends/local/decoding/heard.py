"""What a batch tells of its jobs."""


class Heard:
    """What was told of each job."""

    def __init__(self):
        self.tokens = {}
        self.ends = {}
        self.steps = 0

    def emit(self, job, token):
        self.tokens.setdefault(job.id, []).append(token)

    def ended(self, job, finish, message):
        self.ends.setdefault(job.id, []).append((finish, message))

    def stepped(self):
        self.steps += 1

    def ids(self, job):
        return [token.id for token in self.tokens.get(job.id, [])]
