"""The admin API against its own OpenAPI document, by schemathesis: hundreds of valid and invalid requests."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from proxy.admin.api.dispatch import OPENAPI_PATH
from tests.operators import KEYS, Console, console_tables, start_console

PROGRAM = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance",
    "ignored_auth",
)  # fmt: skip
SEED = "1"


@pytest.fixture
async def console(upstream, start_gateway, logged, http, tmp_path, monkeypatch) -> Console:
    return await start_console(start_gateway, console_tables(upstream, tmp_path, monkeypatch), logged, http)


async def test_no_request_is_answered_otherwise_than_documented(console: Console, tmp_path, logged):
    """Never with 500, whatever is sent: statuses, types and members are those of the document.

    As an owner, who reaches every handler; what other roles may not do is refused before, by one function.
    """
    for caller in ("ada", "ben"):
        await console.call(caller)
    run = await asyncio.create_subprocess_exec(
        PROGRAM, "run", f"{console.admin}{OPENAPI_PATH}", "--header", f"Authorization: Bearer {KEYS['owner']}",
        "--exclude-path", "/admin/v1/now/stream", "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--max-examples", "15", "--seed", SEED,
        "--no-color", cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await run.communicate()

    assert run.returncode == 0, output.decode()
    assert [line for line in logged if line["event"] == "admin.crashed"] == []
