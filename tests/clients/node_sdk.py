"""Runs cases that are written for the `openai` package of npm, in one node process for each file of cases."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "node"
MIN_NODE = 20
INSTALL_TIMEOUT_S, RUN_TIMEOUT_S = 180, 300


@dataclass
class Outcome:
    """What a file of cases found: the error of each case (None: it passed), and methods that no case called."""

    errors: dict[str, str | None] = field(default_factory=dict)
    uncalled: list[str] | None = None
    """None until the process has come to its end."""

    @property
    def failures(self) -> str:
        """The errors of the cases that failed, as a text; empty if all passed."""
        return "\n".join(f"{name}: {error}" for name, error in self.errors.items() if error is not None)


class NodeSdk:
    """The package, installed. `run` executes the cases of a file in tests/clients/node."""

    def __init__(self, node: str) -> None:
        self._node = node

    async def run(self, file: str, *, on_report: Callable[[Any], object] = print, **options: Any) -> Outcome:
        """Run the cases of a file with these options; `on_report` gets what a case reports while it runs.

        Options: `address` (of the gateway), `keys` (by the names anna and ben), `model`, `slow` (a model that begins an
        answer and does not end it), `kind` ("demo", "upstream"), `only` (the name of one case).
        """
        process = await asyncio.create_subprocess_exec(
            self._node, "driver.mjs", f"./{file}", json.dumps(options), cwd=FOLDER,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        outcome = Outcome()
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                async for line in process.stdout:
                    message = json.loads(line)
                    if "report" in message:
                        on_report(message["report"])
                    elif "uncalled" in message:
                        outcome.uncalled = message["uncalled"]
                    else:
                        outcome.errors[message["name"]] = message["error"]
        except BaseException:
            process.kill()
            raise
        finally:
            await process.wait()
        assert outcome.uncalled is not None, (await errors).decode()
        return outcome


def install() -> NodeSdk:
    """Return the SDK, installed once for each lock file. Skips the test where node, npm or the package is missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is missing")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < MIN_NODE:
        pytest.skip(f"node is {version}; the SDK needs {MIN_NODE}")
    installed = FOLDER / "node_modules" / ".lock.sha256"
    digest = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    lock = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that run side by side
        if not installed.exists() or installed.read_text() != digest:
            _install(npm)
            installed.write_text(digest)
    finally:
        os.close(lock)
    return NodeSdk(node)


def _install(npm: str) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000"]
    try:
        subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip("npm has not installed the SDK in time")
    except subprocess.CalledProcessError as failed:
        pytest.skip(f"npm cannot install the SDK: {failed.stderr[-400:]}")
