"""The set-up by make, which runs in shells of every kind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_activated_environment_is_not_what_installs_packages():
    """It has no pip: `make test` would fail as soon as a lock file has changed."""
    venv = ROOT / ".venv"
    environ = {**os.environ, "VIRTUAL_ENV": str(venv), "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    command = ["make", "--dry-run", "--always-make", "setup"]
    printed = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout

    assert f"{sys.base_prefix}/bin/python3 -m pip " in printed
    assert "python3 -m pip" not in printed.replace(f"{sys.base_prefix}/bin/python3 -m pip", "")
