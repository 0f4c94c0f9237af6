"""An engine's process that misbehaves; how, the path in its order says. Started by tests in place of the real one."""

import json
import socket
import sys
import time

FOREVER_S = 600
READY = {
    "device": "cpu",
    "compute_type": "rogue",
    "costs": {"step_s": 0.01, "slope": 0.1, "prefill_s_per_token": 0.001, "kv_bytes_per_token": 1, "workers": 1},
}


class Rogue:
    def __init__(self, end):
        self._end = socket.socket(fileno=end)

    def read(self):
        size = int.from_bytes(self._end.recv(4, socket.MSG_WAITALL))
        return json.loads(self._end.recv(size, socket.MSG_WAITALL)) if size else None

    def say(self, *message):
        self.shout(json.dumps(message).encode())

    def shout(self, body, length=None):
        self._end.sendall((len(body) if length is None else length).to_bytes(4) + body)

    def job(self):
        """The number of the first job."""
        while (said := self.read()) is not None:
            if said[0] == "job":
                return said[1]
        return None

    def behave(self, how):
        """Load, or do not."""
        if how == "dies while loading":
            sys.exit(3)
        if how == "noise while loading":
            self.shout(b"noise")
        if how == "odd start":
            self.say("ready", {"device": "cpu"})
        if how != "never loads":
            self.say("ready", READY)
            job = None if how in ("deaf", "pongs", "answers pings") else self.job()
            if how == "answers pings":
                self.answer_pings()
            self.misbehave(how, job)
        time.sleep(FOREVER_S)

    def answer_pings(self):
        """And nothing else."""
        while (self.read() or ["close"])[0] != "close":
            self.say("pong", 1)
        sys.exit(0)

    def misbehave(self, how, job):
        if how == "noise":
            self.shout(b"\xff" * 100)
        if how == "oversized":
            self.shout(b"", length=2**32 - 1)
        if how == "odd log":
            self.say("log", "error", "local.odd", {"event": "twice"})
        if how == "unknown":
            self.say("what", 1)
        if how == "bad steps":
            self.say("steps", [[job, [10**9], None, None, ""]])
        if how == "out of memory":
            self.say("steps", [[job, [], "failed", None, "MemoryError: std::bad_alloc"]])
        if how == "closes":
            self._end.close()
        while how == "tokens":
            self.say("steps", [[job, [5] * 100, None, None, ""]])
        while how == "pongs":
            self.say("pong", 1)


if __name__ == "__main__":
    rogue = Rogue(int(sys.argv[1]))
    rogue.behave(rogue.read()[1]["path"])
