"""The image as far as files can show it: what it copies, who runs it, and that its health check finds a gateway."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.conftest import CANNED, tables_for
from tests.redis_server import free_port

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PROBE = ROOT / "deploy" / "healthcheck.py"


def copied() -> set[str]:
    """Return what is copied from the project."""
    lines = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY") and "--from" not in line]
    return {path for line in lines for path in line}


def test_everything_that_is_copied_is_sent_to_the_build():
    """And nothing else: .dockerignore leaves out all but what the COPY lines name."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    assert all((ROOT / path).exists() for path in copied())
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:] if line[0] == "!"} == copied()
    assert {line for line in ignored[1:] if line[0] != "!"} == {"**/__pycache__"}


def test_no_file_that_is_copied_can_be_a_secret():
    """Names as those of keys, variables and states occur in no folder that is copied."""
    names = [path.name for each in copied() for path in (ROOT / each).rglob("*")]

    assert [name for name in names if re.search(r"\.(pem|key|env|db|sqlite|jsonl)$|^\.env", name)] == []


def test_it_runs_as_a_user_who_is_not_root_with_the_locked_packages():
    """The last USER is a number; each installation is of a lock file with hashes, or of the project itself."""
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    installs = [line.removesuffix(" \\") for line in DOCKERFILE.splitlines() if line.startswith("RUN pip")]
    lock = (ROOT / "requirements.lock").read_text()

    assert users == ["10001"]
    assert len(installs) == 2
    assert all("--no-deps" in each and ("--require-hashes" in each or each.endswith(" .")) for each in installs)
    assert "\nsetuptools==" in lock
    assert "HEALTHCHECK" in DOCKERFILE
    assert f"COPY deploy/{PROBE.name}" in DOCKERFILE


async def probe(config: Path, **variables: str) -> int:
    """Return the exit status of the health check."""
    return (await asked(config, **variables))[0]


async def asked(config: Path, **variables: str) -> tuple[int, str]:
    """Return the exit status of the health check, and what it says."""
    environment = {**os.environ, "HEADGATE_CONFIG": str(config), **variables}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(PROBE)], env=environment, capture_output=True, check=False
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_health_check_finds_the_gateway(start_gateway, upstream, tmp_path, scheme):
    """By the port of the config or of the variable, with TLS too; without a gateway it says so."""
    server: dict[str, str] = {}
    if scheme == "https":
        make_certificate(tmp_path, "served")
        server = {"tls_cert": f"{tmp_path}/served.pem", "tls_key": f"{tmp_path}/served.key"}
    address = await start_gateway(tables_for(upstream, server=server))
    lines = "".join(f"{name} = {value!r}\n" for name, value in server.items())
    port = address.rpartition(":")[2]
    config = tmp_path / "headgate.toml"
    config.write_text(f"[server]\nport = {port}\n{lines}{CANNED}")

    assert await probe(config) == 0
    assert await probe(config, HEADGATE_PORT=str(free_port())) == 1
    config.write_text(f"[server]\nport = 1\n{lines}{CANNED}")
    assert await probe(config, HEADGATE_PORT=port) == 0
    assert await asked(config, HEADGATE_PORT="http") == (
        1, "unhealthy: invalid port 'http' in HEADGATE_PORT, or in [server]\n"
    )  # fmt: skip
    config.write_text("[server")
    assert await probe(config) == 1
