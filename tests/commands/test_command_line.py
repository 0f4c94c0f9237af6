"""Which module has which command."""

import argparse
from importlib import import_module
from pathlib import Path

import pytest

from proxy.commands import command_line
from proxy.commands.command_line import SUBJECTS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_module_adds_the_commands_that_are_listed(subject: str):
    """Only the module of the command that is named is imported."""
    commands = argparse.ArgumentParser().add_subparsers()
    import_module(f"proxy.commands.{subject}").add_to(commands)

    assert tuple(commands.choices) == SUBJECTS[subject]


def test_every_module_with_a_command_is_listed():
    """So that help has it."""
    modules = Path(command_line.__file__).parent.glob("*.py")

    assert {module.stem for module in modules if "def add_to(" in module.read_text()} == SUBJECTS.keys()


def test_help_has_every_command(capsys):
    """In the order of the table."""
    with pytest.raises(SystemExit):
        command_line.run(["--help"])
    lines = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4] != " "
    ]

    assert lines == [name for names in SUBJECTS.values() for name in names]
