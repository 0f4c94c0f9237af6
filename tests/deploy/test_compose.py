"""The files of compose.yaml: valid, complete, and started here with the same commands on other ports."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import aiohttp
import jsonschema
import orjson
import pytest
import yaml

from tests.redis_server import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def test_it_is_valid():
    """By the schema of the Compose Specification (compose-spec/compose-spec, Apache-2.0)."""
    schema = orjson.loads((Path(__file__).parent / "compose-spec.json").read_bytes())

    assert list(jsonschema.Draft7Validator(schema).iter_errors(COMPOSE)) == []


def test_every_file_and_volume_that_is_mounted_exists():
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source, target, *_ = mount.split(":")

            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], (name, mount)
            assert target.startswith("/"), (name, mount)


def test_every_host_in_the_files_is_a_service():
    """And what waits for a service waits until it answers."""
    hosts = set()
    for path in [*(DEPLOY / "compose").rglob("*.*"), DEPLOY / "compose.yaml"]:
        text = re.sub(r"^\s*#.*", "", path.read_text(), flags=re.MULTILINE)
        hosts |= set(re.findall(r"(?:redis|http)://([a-z]+):\d", text)) | set(re.findall(r'\["([a-z]+):\d+"\]', text))

    assert hosts == {"state", "cache", "collector", "jaeger", "prometheus", "headgate"}
    assert hosts <= SERVICES.keys()
    assert all("healthcheck" in SERVICES[name] for name in SERVICES["headgate"]["depends_on"])


def test_only_the_gateway_is_reached_from_other_machines():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert [name for name, ports in published.items() if any(not port.startswith("127.0.0.1:") for port in ports)] == ["headgate"]  # fmt: skip


def test_the_gateway_has_time_to_drain():
    config = (DEPLOY / "compose" / "headgate.toml").read_text()

    assert "drain_s" not in re.sub(r"drain_delay_s = 0", "", config)  # the default: 30 s
    assert int(SERVICES["headgate"]["stop_grace_period"].removesuffix("s")) > 30 + 10


@pytest.mark.parametrize("path", ["compose/prometheus.yml", "telemetry/prometheus.yml"])
def test_prometheus_accepts_its_files(path: str, tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool; install Debian's prometheus")
    shutil.copy(DEPLOY / path, tmp_path / "prometheus.yml")
    shutil.copy(DEPLOY / "telemetry" / "alerts.yml", tmp_path)
    done = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, check=False)

    assert done.returncode == 0, done.stdout


@asynccontextmanager
async def redis(service: str, folder: Path) -> AsyncIterator[int]:
    """Run the command of a service; yield its port."""
    port = free_port()
    (folder / service).mkdir()
    command = [*shlex.split(SERVICES[service]["command"]), "--port", str(port), "--bind", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder / service, stdout=PIPE)
    try:
        assert process.stdout is not None
        while b"Ready to accept connections" not in (line := await process.stdout.readline()):
            assert line
        yield port
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def headgate(config: Path) -> AsyncIterator[str]:
    """Run the gateway; yield its address once all workers serve."""
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(config), "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).split()[3].decode().removesuffix("/v1.")
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.parametrize("has_console", [False, True], ids=["as it stands", "with a key of an operator"])
async def test_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_console: bool):
    """With the commands of both servers and the config of the image: the first key, and a call with it."""
    admin_port = free_port()
    async with AsyncExitStack() as stack:
        text = (DEPLOY / "compose" / "headgate.toml").read_text()
        for service, old in (("state", "state:6379"), ("cache", "cache:6379")):
            text = text.replace(old, f"127.0.0.1:{await stack.enter_async_context(redis(service, tmp_path))}")
        text = text.replace("/opt/headgate/demo", str(ROOT / "backends" / "demo"))
        text = text.replace("[admin]\n", f"[admin]\nport = {admin_port}\n")
        if has_console:
            text = re.sub(r'^# (?=\[\[admin|name = "ada|key = |role = )', "", text, flags=re.MULTILINE)
            monkeypatch.setenv("HEADGATE_ADMIN_KEY", "a-key-of-an-operator-0123456789-0123")
        config = tmp_path / "headgate.toml"
        config.write_text(text)
        address = (await stack.enter_async_context(headgate(config))).replace("0.0.0.0", "127.0.0.1")
        command = [
            sys.executable,
            "-m",
            "proxy",
            "key",
            "create",
            "--config",
            str(config),
            "--team",
            "a",
            "--name",
            "b",
        ]
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        admin = f"http://127.0.0.1:{admin_port}/admin"
        async with http.post(f"{admin}/sign-in", data={"key": os.environ.get("HEADGATE_ADMIN_KEY", "")}) as answer:
            is_signed_in = answer.status == 200 and "Sign out" in await answer.text()
        async with http.get(f"{address}/readyz") as answer:
            ready: Any = await answer.json()
        body = {"model": "headgate-demo", "input": "Hello!", "prompt_cache_key": "k"}
        headers = {"Authorization": f"Bearer {done.stdout.decode().strip()}"}
        async with asyncio.timeout(30):
            statuses = []
            while 200 not in statuses:  # until every worker knows the key
                async with http.post(f"{address}/v1/responses", json=body, headers=headers) as answer:
                    statuses.append(answer.status)

    assert (ready["status"], ready["state"], ready["cache"]) == ("ready", "up", "up")
    assert set(statuses) <= {200, 401}
    assert is_signed_in == has_console
    assert ("Asking the gateway" in done.stderr.decode()) == has_console
