"""Which module has which command."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from proxy.commands import command_line
from proxy.commands.command_line import SUBJECTS, CommandParser


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


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands and verbs that do something."""
    verbs = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not verbs:
        yield parser
    for choices in verbs:
        for each in choices.values():
            yield from parsers_of(each)


def test_an_unknown_argument_is_refused_with_the_usage_of_its_command(capsys):
    """Of every command and verb, whatever it requires."""
    parser = CommandParser(prog="headgate")
    commands = parser.add_subparsers()
    for subject in SUBJECTS:
        import_module(f"proxy.commands.{subject}").add_to(commands)
    leaves = [*parsers_of(parser)]
    for leaf in leaves:
        for action in leaf._actions:
            action.required = False
        with pytest.raises(SystemExit):
            parser.parse_args([*leaf.prog.split()[1:], "--unknown"])
        printed = capsys.readouterr().err

        assert printed.startswith(f"usage: {leaf.prog} [-h]")
        assert printed.endswith(f"{leaf.prog}: error: unrecognized arguments: --unknown\n")
    assert {leaf.prog for leaf in leaves} >= {"headgate serve", "headgate audit search", "headgate key create"}


def test_an_unknown_option_before_the_command_is_refused_with_the_usage_of_all(capsys):
    """It belongs to none of them."""
    with pytest.raises(SystemExit):
        command_line.run(["--unknown", "serve"])

    assert capsys.readouterr().err.startswith("usage: headgate [-h] [--version] COMMAND")
