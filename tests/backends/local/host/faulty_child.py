"""A child process with a fault, which the path in its spec names. Tests start it in place of the real one."""

import json
import socket
import sys
import time

FOREVER_S = 600
READY = {
    "device": "cpu",
    "compute_type": "faulty",
    "costs": {"step_s": 0.01, "slope": 0.1, "prefill_s_per_token": 0.001, "kv_bytes_per_token": 1, "workers": 1},
}


class FaultyChild:
    def __init__(self, fd):
        self._socket = socket.socket(fileno=fd)

    def receive(self):
        size = int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL))
        return json.loads(self._socket.recv(size, socket.MSG_WAITALL)) if size else None

    def send(self, *message):
        self.send_raw(json.dumps(message).encode())

    def send_raw(self, body, length=None):
        self._socket.sendall((len(body) if length is None else length).to_bytes(4) + body)

    def wait_for_job(self):
        """Return the id of the first job."""
        while (message := self.receive()) is not None:
            if message[0] == "job":
                return message[1]
        return None

    def run(self, fault):
        if fault == "dies while loading":
            sys.exit(3)
        if fault == "noise while loading":
            self.send_raw(b"noise")
        if fault == "odd start":
            self.send("ready", {"device": "cpu"})
        if fault != "never loads":
            self.send("ready", READY)
            job = None if fault in ("deaf", "pongs", "answers pings") else self.wait_for_job()
            if fault == "answers pings":
                self.answer_pings()
            self.fail(fault, job)
        time.sleep(FOREVER_S)

    def answer_pings(self):
        """Do nothing else."""
        while (self.receive() or ["close"])[0] != "close":
            self.send("pong", 1)
        sys.exit(0)

    def fail(self, fault, job):
        if fault == "noise":
            self.send_raw(b"\xff" * 100)
        if fault == "oversized":
            self.send_raw(b"", length=2**32 - 1)
        if fault == "odd log":
            self.send("log", "error", "local.odd", {"event": "twice"})
        if fault == "unknown":
            self.send("what", 1)
        if fault == "bad steps":
            self.send("steps", [[job, [10**9], None, None, ""]])
        if fault == "out of memory":
            self.send("steps", [[job, [], "failed", None, "MemoryError: std::bad_alloc"]])
        if fault == "closes":
            self._socket.close()
        while fault == "tokens":
            self.send("steps", [[job, [5] * 100, None, None, ""]])
        while fault == "pongs":
            self.send("pong", 1)


if __name__ == "__main__":
    child = FaultyChild(int(sys.argv[1]))
    child.run(child.receive()[1]["path"])
