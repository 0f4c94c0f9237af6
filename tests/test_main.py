"""The command line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.__main__ import main
from proxy.commands.serve import _greet

REPLAY = Path(__file__).parent / "data" / "canonical.sse"
CONFIG = f"""
[[caller]]
name = "app"
key = "env:APP_KEY"
[[policy]]
use = "max_tool_calls"
mode = "report"
max = 4
[[backend]]
use = "replay"
name = "canned"
path = "{REPLAY}"
[[route]]
model = "*"
backend = "canned"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid config file."""
    monkeypatch.setenv("APP_KEY", "the-apps-own-key")
    path = tmp_path / "headgate.toml"
    path.write_text(CONFIG)
    return path


def test_check_reports_a_missing_secret(config: Path, capsys, monkeypatch):
    """The message names the key but not its value, which may be the secret itself."""
    monkeypatch.delenv("APP_KEY")
    code = main(["check", "--config", str(config)])

    assert (code, capsys.readouterr().err) == (
        2, f"{config}:4:1: caller[0].key: the environment variable APP_KEY is not set\n",
    )  # fmt: skip


def test_check_without_a_file_prints_the_embedded_defaults(capsys, monkeypatch):
    """`make run` serves them."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    assert main(["check"]) == 0
    assert "route     headgate-demo -> demo (local)" in capsys.readouterr().out


def test_help_prints_an_example():
    """The example can be copied; `python -m proxy` is the same command."""
    done = subprocess.run([sys.executable, "-m", "proxy", "--help"], capture_output=True, text=True, check=True)

    assert "example: headgate serve --config my.toml" in done.stdout


def test_a_missing_file_is_an_input_error(tmp_path: Path, capsys):
    """The message names the file."""
    code = main(["serve", "--config", str(tmp_path / "none.toml")])

    assert (code, capsys.readouterr().err) == (2, f"{tmp_path / 'none.toml'}: No such file or directory\n")


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_an_invalid_port_is_exit_2(port: str, capsys):
    """The message names the option."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--port", port])

    assert caught.value.code == 2
    assert f"argument --port: invalid port '{port}'; it is a number from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "message"),
    [
        ("HEADGATE_PORT", "http", ["serve"], "--port: invalid port 'http' in HEADGATE_PORT; it is a number from 0"),
        (
            "HEADGATE_CONFIG",
            "/none.toml",
            ["check"],
            "--config: HEADGATE_CONFIG is '/none.toml', which is no file that",
        ),
        (
            "HEADGATE_CONFIG",
            "/",
            ["key", "list"],
            "--config: HEADGATE_CONFIG is '/', which is no file that can be read",
        ),
    ],
)
def test_a_bad_value_of_a_variable_names_the_variable(variable, value, arguments, message, capsys, monkeypatch):
    """Before anything else is done: it may have been set long ago, and elsewhere."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "message"),
    [
        ("HEADGATE_HOST", "0.0.0.0", ["serve"], "HEADGATE_HOST is set to 0.0.0.0."),
        ("HEADGATE_ADMIN_KEY", "ключ", ["reload", "--url", "http://127.0.0.1:1"], "HEADGATE_ADMIN_KEY: this is no key"),
        (
            "HEADGATE_ADMIN_URL",
            "ftp://gate",
            ["reload"],
            "HEADGATE_ADMIN_URL: 'ftp://gate' is no address; write http://",
        ),
        ("HEADGATE_ADMIN_URL", "http://gate:x", ["key", "list"], "HEADGATE_ADMIN_URL: 'http://gate:x' is no address"),
        ("HEADGATE_ADMIN_URL", "http://127.0.0.1:1", ["reload"], "(HEADGATE_ADMIN_URL names it)"),
        ("HEADGATE_WORKER", "1/2", ["serve"], "HEADGATE_WORKER: only a supervisor sets it, for its workers; unset it"),
    ],
)
def test_what_cannot_be_done_with_a_variable_names_it(variable, value, arguments, message, capsys, monkeypatch):
    """What is wrong with it is found later."""
    monkeypatch.setenv(variable, value)

    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_option_wins_over_a_bad_variable(config: Path, monkeypatch):
    """Which is then not read."""
    monkeypatch.setenv("HEADGATE_CONFIG", "/none.toml")

    assert main(["check", "--config", str(config)]) == 0


def test_the_address_of_the_command_line_is_checked_like_that_of_the_config(capsys, monkeypatch):
    """By option or by variable: others could reach a gateway without callers."""
    monkeypatch.setenv("HEADGATE_HOST", "0.0.0.0")

    assert main(["serve"]) == 2
    assert capsys.readouterr().err.startswith("server.host: 0.0.0.0 is reachable by others")


def test_a_variable_stands_for_the_config(config: Path, capsys, monkeypatch):
    """An option wins."""
    monkeypatch.setenv("HEADGATE_CONFIG", str(config))
    outcomes = [main(["check"]), main(["check", "--config", "/none.toml"]), main(["check", "--diff", str(config)])]

    assert outcomes == [0, 2, 0]
    assert "route     * -> canned (replay)" in capsys.readouterr().out


def test_the_differences_of_two_files_are_printed(config: Path, tmp_path: Path, capsys):
    """Instead of the path of a call."""
    old = tmp_path / "old.toml"
    old.write_text(CONFIG.replace("max = 4", "max = 5") + "[server]\nport = 1\n")

    assert main(["check", "--config", str(config), "--diff", str(old)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "policy[max_tool_calls].max: 5 -> 4", "server: removed (needs a restart)"
    ]  # fmt: skip


def test_a_reader_that_has_read_enough_is_no_fault():
    """Such as `head`: there is no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-m", "proxy", "check"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (0, b"")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("headgate 0.")


def test_errors_of_files_and_ports_are_sentences(config: Path, tmp_path: Path, capsys):
    """They have no notation of Python: no number of an error, no tuple of an address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "proxy", "serve", "--config", config]
        changes = {("server", "--port, HEADGATE_PORT or "): "", ("admin", ""): "port = 0"}
        for (table, options), server in changes.items():
            config.write_text(
                CONFIG.replace(str(REPLAY), "none")
                + f"[{table}]\nport = {port}\n"
                + (server and f"[server]\n{server}\n")
            )
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            hint = f"choose another port with {options}port in [{table}]"
            in_use = f"headgate cannot start: 127.0.0.1:{port}: it is used by another process; {hint}"

            assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, in_use), "before anything is opened"
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: No such file or directory\n"


@pytest.mark.parametrize(("is_open", "key"), [(True, ""), (False, " -H 'Authorization: Bearer YOUR-KEY'")])
def test_the_first_request_that_is_printed_has_a_key_if_one_is_needed(capsys, is_open: bool, key: str):
    """Its model is the first that is no pattern."""
    _greet("http://127.0.0.1:1", ["gpt-*", "m"], is_open=is_open)

    assert f"curl http://127.0.0.1:1/v1/responses{key} -H 'Content-Type" in capsys.readouterr().out
