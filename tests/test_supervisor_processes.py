"""Several worker processes behind one port: real processes, killed, stopped and drained."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from proxy import supervisor
from proxy.__main__ import main
from proxy.config.build import build, read
from proxy.config.validation import ConfigError
from proxy.http.listening import open_listeners
from proxy.supervisor import Supervisor
from tests.raw import until
from tests.timeouts import pause
from tests.worker_gateways import LIMIT_S, REQUEST, ROOT, Start, write_config


async def test_two_workers_are_one_gateway(start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path, capsys):
    """Both answer, their metrics are added up, each has an audit file, and both end with the supervisor."""
    gateway = await start_workers()
    statuses = await asyncio.gather(*(gateway.call(http) for _ in range(60)))
    async with http.get(f"{gateway.admin}/metrics") as answer:
        counted = re.findall(r"^headgate_calls_total\{.*\} (\S+)$", await answer.text(), re.MULTILINE)
    async with http.get(f"{gateway.admin}/readyz") as answer:
        report = await answer.json()
    gateway.process.send_signal(signal.SIGTERM)
    status = await asyncio.wait_for(gateway.process.wait(), LIMIT_S)
    files = [tmp_path / f"audit.{number}.jsonl" for number in (1, 2)]

    assert (set(statuses), sum(map(float, counted)), status) == ({200}, 60, 0)
    assert (report["status"], report["workers"]) == ("ready", 2)
    assert [main(["audit", "verify", str(file)]) for file in files] == [0, 0]
    assert all(len(file.read_bytes().splitlines()) > 1 for file in files), "both workers got calls"


async def test_a_reload_reaches_all_workers(start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path):
    """After it no worker serves the config before; one with a fault is served by none."""
    gateway = await start_workers()
    answers = []
    for more in ('[[policy]]\nuse = "size"\nmax_items = 1\n', "[nothing]\n"):
        write_config(tmp_path, more)
        async with http.post(f"{gateway.admin}/reload") as answer:
            found = await answer.json()
            answers.append((answer.status, found.get("changes") or found["error"]["message"].rpartition(": ")[2]))
        message = {"role": "user", "content": "Hi"}
        statuses = await asyncio.gather(*(gateway.call(http, input=[message, message]) for _ in range(30)))

        assert set(statuses) == {400}
    async with http.get(f"{gateway.admin}/metrics") as answer:
        counted = re.findall(r"^headgate_config_reloads_total\{(.*)\} (\S+)$", await answer.text(), re.MULTILINE)

    assert answers == [(200, ["policy[size]: added"]), (422, "unknown key (worker 1)")]
    assert sorted(counted) == [('headgate_outcome="failed"', "2"), ('headgate_outcome="succeeded"', "2")]


async def test_a_killed_worker_is_replaced(start_workers: Start, http: aiohttp.ClientSession):
    """Its connections wait for the new one; what it had counted is not forgotten."""
    gateway = await start_workers()
    before = await asyncio.gather(*(gateway.call(http) for _ in range(20)))
    async with http.get(f"{gateway.admin}/metrics") as answer:
        await answer.read()
    victim, other = gateway.children()
    os.kill(victim, signal.SIGKILL)
    ended = await gateway.until_logged("worker.ended")
    after = await asyncio.gather(*(gateway.call(http) for _ in range(40)))
    async with http.get(f"{gateway.admin}/metrics") as answer:
        counted = re.findall(r"^headgate_calls_total\{.*\} (\S+)$", await answer.text(), re.MULTILINE)

    assert (set(before), set(after), ended["status"]) == ({200}, {200}, -signal.SIGKILL)
    assert other in gateway.children()
    assert sum(map(float, counted)) == 60


async def test_running_streams_end_before_the_workers_do(start_workers: Start, http: aiohttp.ClientSession):
    """SIGTERM to the supervisor alone is enough, and so is Ctrl-C in its terminal."""
    gateway = await start_workers(pace_ms=40)
    async with http.post(f"{gateway.address}/responses", json=REQUEST | {"stream": True}) as answer:
        await answer.content.readany()
        gateway.process.send_signal(signal.SIGINT)
        rest = await answer.read()

    assert rest.endswith(b"data: [DONE]\n\n")
    assert await asyncio.wait_for(gateway.process.wait(), LIMIT_S) == 0


async def test_a_second_signal_ends_running_streams(start_workers: Start, http: aiohttp.ClientSession):
    """Of all workers, although they might go on for half a minute."""
    gateway = await start_workers(pace_ms=3_000)
    async with http.post(f"{gateway.address}/responses", json=REQUEST | {"stream": True}) as answer:
        await answer.content.readany()
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.until_logged("server.stopping")
        gateway.process.send_signal(signal.SIGINT)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
        await asyncio.wait_for(gateway.process.wait(), LIMIT_S)

    stopped = sum(line["event"] == "server.stopped" for line in gateway.lines)

    assert stopped < 2, "only a worker without a stream has finished"


async def test_workers_do_not_outlive_their_supervisor(start_workers: Start):
    """A supervisor that is killed cannot pass anything on."""
    gateway = await start_workers()
    children = gateway.children()
    gateway.process.kill()
    await until(lambda: not any(map(is_running, children)))


def is_running(process: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False


async def test_a_limit_holds_for_all_workers_together(start_workers: Start, http: aiohttp.ClientSession):
    """Of 40 calls just 10 pass."""
    gateway = await start_workers('[[policy]]\nuse = "rate"\nrequests = 10\n')
    statuses = [await gateway.call(http) for _ in range(40)]

    assert (statuses.count(200), statuses.count(429)) == (10, 30)


async def test_the_pause_before_a_restart_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    """A worker that ends again and again does not take the machine; the pause has a limit."""
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.004)
    config = read(write_config(tmp_path))
    running = Supervisor(config.model_copy(update={"admin": None}), [sys.executable, "-c", "raise SystemExit(3)"], 1)
    running._workers[0].pause_s = 0.001
    serving = asyncio.create_task(running.run(print))
    await until(lambda: len(logged) >= 5)
    running._stop(signal.SIGTERM)
    await asyncio.wait_for(serving, LIMIT_S)
    ended = [line for line in logged if line["event"] == "worker.ended"]

    assert [line["starts_in_s"] for line in ended][:5] == [0.001, 0.002, 0.004, 0.004, 0.004]
    assert {line["status"] for line in ended} == {3}


async def test_a_config_with_which_no_worker_starts_ends_the_supervisor(tmp_path: Path):
    """Nothing is started again and again; the exit status and the message are those of one process."""
    config = write_config(tmp_path, '[[backend]]\nname = "none"\nuse = "local"\npath = "/nowhere"\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", "--config", str(config), cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    out, error = await asyncio.wait_for(process.communicate(), LIMIT_S)

    assert (process.returncode, out) == (2, b"")
    assert b"/nowhere" in error


def test_a_port_that_is_taken_is_an_error():
    """Although several sockets of one gateway listen on it."""
    listeners = open_listeners("127.0.0.1", 0, 2)
    port = listeners[0].getsockname()[1]

    assert [listener.getsockname()[1] for listener in listeners] == [port, port]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}'$"):
        open_listeners("127.0.0.1", port, 2)
    for listener in listeners:
        listener.close()


def test_workers_need_a_state_that_they_share():
    """Memory is private to a process."""
    with pytest.raises(ConfigError, match=r"server\.workers: 2 processes cannot share \[state\]"):
        build({"server": {"workers": 2}})


async def test_the_admin_api_answers_for_all_workers(start_workers: Start, http: aiohttp.ClientSession):
    """Requests of both are found, a target is drained in both, and in one that is started later as well."""
    gateway = await start_workers()
    calls = [await gateway.call(http) for _ in range(40)]

    async def ask(method: str, path: str) -> Any:
        async with http.request(method, f"{gateway.admin}/admin/v1/{path}") as answer:
            assert answer.status == 200
            return await answer.json()

    listed = await ask("GET", "requests?limit=500")
    detail = await ask("GET", f"requests/{listed['requests'][0]['id']}")
    drained = await ask("POST", "targets/tape/drain")
    refused = [await gateway.call(http) for _ in range(20)]
    os.kill(gateway.children()[0], signal.SIGKILL)
    await gateway.until_logged("worker.ended")
    async with asyncio.timeout(LIMIT_S):
        while [target["processes"] for target in (await ask("GET", "targets"))["targets"]] != [2]:
            await pause()
        while not (await ask("GET", "targets"))["targets"][0]["drained"]:
            await pause()
    async with http.get(f"{gateway.admin}/admin/requests") as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
    files = [each["is_intact"] for each in (await ask("GET", "audit/verification"))["files"]]

    assert (set(calls), len(listed["requests"]), detail["request"]["target"]) == ({200}, 40, "tape")
    assert (drained["targets"][0]["drained"], drained["targets"][0]["processes"]) == (True, 2)
    assert set(refused) == {503}
    assert files == [True, True, True]


async def test_keys_are_known_to_every_worker(
    start_workers: Start, http: aiohttp.ClientSession, tmp_path: Path, capsys
):
    """Also to the one that replaces a killed one; a key that is revoked ends on all. `[keys] refresh_s` is 0.5."""
    gateway = await start_workers("[keys]\n")
    config = ["--config", str(tmp_path / "headgate.toml")]

    async def command(*arguments: str) -> str:
        assert await asyncio.to_thread(main, ["key", *arguments, *config]) == 0
        return capsys.readouterr().out.strip()

    async def statuses(secret: str) -> set[int]:
        """Return what connections of their own are answered with; the kernel chooses a worker for each."""
        headers = {"Connection": "close", "api-key": secret}

        async def call() -> int:
            async with http.post(f"{gateway.address}/responses", json=REQUEST, headers=headers) as answer:
                return answer.status

        return set(await asyncio.gather(*(call() for _ in range(30))))

    async def settle(secret: str, status: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await statuses(secret) != {status}:
                await pause()

    secret = await command("create", "--team", "search", "--name", "ada")
    await settle(secret, 200)
    os.kill(gateway.children()[0], signal.SIGKILL)
    await gateway.until_logged("worker.ended")
    await settle(secret, 200)
    (row,) = orjson.loads(await command("list", "--format", "json"))
    await command("revoke", row["id"])
    await settle(secret, 401)

    assert (row["name"], row["status"]) == ("ada", "valid")
