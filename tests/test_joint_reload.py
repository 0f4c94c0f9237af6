"""A reload of several worker processes as one: all serve the new config, or none does."""

import asyncio
import fcntl
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.config.build import read
from proxy.config.default import default_config
from proxy.control import COMMIT, PREPARE, Link, Questions, answer_supervisor
from proxy.http.health import Report
from proxy.joint_reload import JointReload
from tests.raw import until
from tests.worker_gateways import LIMIT_S, Gateway, Start, write_config

MESSAGE = {"role": "user", "content": "Hi"}
TIGHTER = '[[policy]]\nuse = "size"\nmax_items = 1\n'


async def reload(gateway: Gateway, http: aiohttp.ClientSession) -> tuple[int, str]:
    """Return the status, and the changes or the fault."""
    async with http.post(f"{gateway.admin}/reload") as answer:
        found = await answer.json()
        return answer.status, found["error"]["message"] if "error" in found else "\n".join(found["changes"])


async def statuses(gateway: Gateway, http: aiohttp.ClientSession) -> set[int]:
    """Return what calls with two items are answered with, on connections that the kernel distributes."""
    return set(await asyncio.gather(*(gateway.call(http, input=[MESSAGE, MESSAGE]) for _ in range(30))))


def exclusive(folder: Path) -> str:
    """Return a backend that only one of two workers can start."""
    return f'[[backend]]\nname = "one"\nuse = "tests.exclusive_backend"\nlock = "{folder}/lock"\n'


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of this file; to try it would take it from the worker."""
    return path.exists() and f":{path.stat().st_ino} 0 EOF" in Path("/proc/locks").read_text()


async def test_what_one_worker_cannot_start_none_serves(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path
):
    """20 times, under load: every call is answered by the config before, and what the other had started is closed."""
    gateway = await start_workers()
    write_config(tmp_path, TIGHTER + exclusive(tmp_path))
    answered: list[int] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            answered.append(await gateway.call(http, input=[MESSAGE, MESSAGE]))

    loads = [asyncio.create_task(load()) for _ in range(3)]
    outcomes = {await reload(gateway, http) for _ in range(20)}
    done.set()
    await asyncio.gather(*loads)
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    async with http.get(f"{gateway.admin}/metrics") as answer:
        counted = re.findall(r"^headgate_config_reloads_total\{(.*)\} (\S+)$", await answer.text(), re.MULTILINE)
    write_config(tmp_path, TIGHTER)
    after = await reload(gateway, http), await statuses(gateway, http)
    reasons = {line["reason"] for line in gateway.lines if line["event"] == "config.reload_failed"}

    assert (set(answered), counted) == ({200}, [('headgate_outcome="failed"', "40")])
    assert {status for status, _ in outcomes} == {422}
    assert {re.sub(r"\d\)$", "N)", text) for _, text in outcomes} == {
        "[Errno 11] Resource temporarily unavailable (worker N)"
    }
    assert {text for text in reasons if text.startswith("nothing has changed: ")}, "the other worker says why"
    assert after == ((200, "policy[size]: added"), {400})


async def test_a_worker_that_is_killed_while_it_prepares_changes_nothing(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path
):
    """Nor has the one that replaces it read the file. The other one has prepared when its backend has its lock."""
    gateway = await start_workers()
    victim = gateway.children()[0]
    write_config(tmp_path, TIGHTER + exclusive(tmp_path))
    os.kill(victim, signal.SIGSTOP)
    reloading = asyncio.create_task(reload(gateway, http))
    await until(lambda: is_locked(tmp_path / "lock"))
    os.kill(victim, signal.SIGKILL)
    status, message = await asyncio.wait_for(reloading, LIMIT_S)
    await gateway.until_logged("worker.ended")
    write_config(tmp_path, TIGHTER)
    before = await statuses(gateway, http)
    after = await reload(gateway, http), await statuses(gateway, http)

    assert (status, re.sub(r"\d", "N", message)) == (422, "worker N ended; no worker has changed")
    assert (before, after) == ({200}, ((200, "policy[size]: added"), {400}))


async def test_a_worker_that_ends_while_another_prepares_is_replaced_at_once(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path
):
    """The reload waits for the other one, which stands still, and changes nothing in the end."""
    gateway = await start_workers()
    waits, victim = gateway.children()
    write_config(tmp_path, TIGHTER + exclusive(tmp_path))
    os.kill(waits, signal.SIGSTOP)
    reloading = asyncio.create_task(reload(gateway, http))
    await until(lambda: is_locked(tmp_path / "lock"))
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(set(gateway.children()) - {waits, victim}) == 1)
    is_waiting = not reloading.done()
    os.kill(waits, signal.SIGCONT)
    status, _ = await asyncio.wait_for(reloading, LIMIT_S)
    write_config(tmp_path, TIGHTER)
    before = await statuses(gateway, http)
    after = await reload(gateway, http), await statuses(gateway, http)

    assert (is_waiting, status, before) == (True, 422, {200})
    assert after == ((200, "policy[size]: added"), {400})


class Process:
    """A worker's end of the connection: it answers when it may, and notes its steps."""

    def __init__(self, answer: Report = (200, {"changes": []})) -> None:
        self.answer = answer
        self.steps: list[str] = []
        self.may_answer = asyncio.Event()

    async def connect(self, questions: Questions) -> Link:
        """Return the supervisor's end."""
        own, other = socket.socketpair()
        ours, theirs = await Link.over(own), await Link.over(other)

        async def respond(word: str, _argument: Any) -> Report:
            self.steps.append(word)
            await self.may_answer.wait()
            return self.answer

        async def settle() -> None:
            with suppress(EOFError):
                while True:
                    _, answered = await ours.receive()
                    questions.settle(*answered)

        self._links = ours, theirs
        self._tasks = asyncio.gather(settle(), answer_supervisor(theirs, {}, lambda: None, respond))
        return ours

    async def end(self) -> None:
        for link in self._links:
            link.close()
        await self._tasks


async def test_a_worker_that_was_started_meanwhile_prepares_too(tmp_path: Path):
    """One ended before it served, while another prepared; what replaced it has the config before, and changes it."""
    questions, path = Questions(), write_config(tmp_path)
    joint = JointReload(read(path), questions)
    first, replaced, later = Process(), Process(), Process()
    links = {1: (await first.connect(questions), True), 2: (await replaced.connect(questions), False)}
    write_config(tmp_path, TIGHTER)
    reloading = asyncio.create_task(joint.reload(lambda: links))
    await until(lambda: first.steps == replaced.steps == [PREPARE])
    questions.forget(links[2][0])
    async with joint.starting:
        started_with = joint.texts
        links[2] = await later.connect(questions), True
    later.may_answer.set()
    first.may_answer.set()
    status, _ = await asyncio.wait_for(reloading, LIMIT_S)
    for process in (first, replaced, later):
        await process.end()

    assert started_with is not None
    assert joint.texts is not None
    assert (status, first.steps, later.steps) == (200, [PREPARE, COMMIT], [PREPARE, COMMIT])
    assert (TIGHTER in started_with.served, TIGHTER in joint.texts.served) == (False, True)


async def test_a_worker_that_has_ended_discards_nothing(tmp_path: Path):
    """It had prepared what another one could not; an answer of it would be waited for."""
    questions, path = Questions(), write_config(tmp_path)
    joint = JointReload(read(path), questions)
    ended, failing = Process(), Process((422, {"error": {"message": "no"}}))
    links = {number: (await each.connect(questions), True) for number, each in enumerate((ended, failing), start=1)}
    reloading = asyncio.create_task(joint.reload(lambda: links))
    ended.may_answer.set()
    await until(lambda: ended.steps == failing.steps == [PREPARE])
    del links[1]
    failing.may_answer.set()
    status, _ = await asyncio.wait_for(reloading, LIMIT_S)
    for process in (ended, failing):
        await process.end()

    assert (status, ended.steps) == (422, [PREPARE])


async def test_a_replaced_worker_serves_what_the_others_serve(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path
):
    """Not the file, which has a fault by now; of what needs a restart, such as [state], the config of the start."""
    gateway = await start_workers()
    path = write_config(tmp_path, TIGHTER)
    path.write_text(path.read_text().replace("state.db", "other.db"))
    changed = await reload(gateway, http)
    path.write_text("[nothing]\n")
    for victim in gateway.children():
        os.kill(victim, signal.SIGKILL)
    await until(lambda: sum(line["event"] == "worker.ended" for line in gateway.lines) == 2)
    found = await statuses(gateway, http)

    assert changed[0] == 200
    assert "(needs a restart)" in changed[1]
    assert (found, (tmp_path / "other.db").exists()) == ({400}, False)


@pytest.mark.parametrize("content", ["[nothing", None])
async def test_a_file_that_cannot_be_read_changes_nothing(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path, content: str | None
):
    """By SIGHUP as well: each worker logs why, and counts it."""
    gateway = await start_workers()
    path = write_config(tmp_path)
    path.unlink() if content is None else path.write_text(content)
    gateway.process.send_signal(signal.SIGHUP)
    await until(lambda: sum(line["event"] == "config.reload_failed" for line in gateway.lines) == 2)
    status, message = await reload(gateway, http)
    reasons = {line["reason"] for line in gateway.lines if line["event"] == "config.reload_failed"}

    assert (status, reasons, await statuses(gateway, http)) == (422, {message}, {200})


async def test_a_config_is_mended_where_no_worker_serves(tmp_path: Path):
    """The workers that are started next get it, unless it has a fault."""
    path = write_config(tmp_path)
    joint = JointReload(read(path), Questions())
    write_config(tmp_path, TIGHTER)
    mended = await joint.reload(dict)
    assert joint.texts is not None
    served = joint.texts.served
    write_config(tmp_path, "[nothing]\n")
    status, _ = await joint.reload(dict)

    assert mended == (200, {"changes": ["policy[size]: added"]})
    assert (status, joint.texts.served) == (422, served)
    assert TIGHTER in served


async def test_a_config_in_no_file_is_not_read_again():
    """There is nothing that could have changed."""
    status, _ = await JointReload(default_config(), Questions()).reload(dict)

    assert status == 422


def test_what_needs_a_restart_is_that_of_the_first_text(tmp_path: Path):
    """The lines of a file's changes name it, although it is not served."""
    first = write_config(tmp_path).read_text()
    path = write_config(tmp_path, '[log]\nformat = "json"\n')
    path.write_text(
        path.read_text().replace("state.db", "other.db").replace("workers = 2", "workers = 3\ndeadline_s = 9")
    )
    config = read(path, first=first)

    assert (config.server.worker_count, config.server.deadline_s, config.log.format) == (2, 9, "auto")
    assert (config.state.path, read(path).state.path) == (tmp_path / "state.db", tmp_path / "other.db")
    assert config.tables["server"]["workers"] == 3
