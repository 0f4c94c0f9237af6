"""The systemd unit: understood by systemd, with time to drain and commands that exist."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.__main__ import main

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "headgate.service"
COMMAND = "/opt/headgate/.venv/bin/headgate"


def test_systemd_accepts_it(tmp_path: Path):
    """With a command that exists on this machine."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(COMMAND, "/bin/true"))
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_its_commands_exist(capsys: pytest.CaptureFixture[str]):
    """Without a config both are refused by `headgate` itself, not as unknown commands."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    commands = [service[name].removeprefix(f"{COMMAND} ") for name in ("ExecStartPre", "ExecStart")]

    assert commands == ["check", "serve"]
    for command in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"usage: headgate {command}" in capsys.readouterr().out
    assert int(re.sub(r"\D", "", service["TimeoutStopSec"])) > 30 + 10
