"""The processor time of a server under test."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.bench.processes import ServerProcess, processes_of

SERVER = """
import subprocess, sys, time
command = [sys.executable, "-c", "import time; end = time.process_time() + 0.3\\nwhile time.process_time() < end: pass\\n"
           "print('used', flush=True); time.sleep(60)"]
worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
other = subprocess.Popen(["sleep", "60"])
worker.stdout.readline()
print(worker.pid, other.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int, int]]:
    """A process with a worker that has worked for 0.3 s, and with a child that runs another program."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    worker, other = map(int, process.stdout.readline().split())
    yield process.pid, worker, other
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_workers_count_and_other_programs_do_not(server: tuple[int, int, int]):
    pid, worker, _ = server

    assert [*processes_of(pid)] == [pid, worker]
    assert ServerProcess(pid, 0, 0.0).cpu_s() >= 0.3
