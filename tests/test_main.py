"""The command line."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxy.__main__ import main

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


def test_check_prints_the_path_of_a_call_in_order(config: Path, capsys: pytest.CaptureFixture[str]):
    """One line for each step, without secrets."""
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert printed.out.splitlines() == [
        "listen    127.0.0.1:8080",
        "identify  app (team app)",
        "policy    max_tool_calls [report] max=4",
        "state     memory",
        "route     * -> canned (replay)",
        "cache     none",
    ]


def test_check_names_an_unknown_key(config: Path, capsys: pytest.CaptureFixture[str]):
    """A misspelt key ends with exit status 2 and the path of the key."""
    config.write_text(CONFIG.replace("max = 4", "max = 4\nmaximum = 5"))
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("policy[0].maximum: unknown key")


def test_check_reports_a_missing_secret(config: Path, capsys, monkeypatch):
    """The message names the key; what the key contains is not repeated, as it may be the secret itself."""
    monkeypatch.delenv("APP_KEY")
    code = main(["check", "--config", str(config)])

    assert (code, capsys.readouterr().err) == (2, "caller[0].key: the environment variable that it names is not set\n")


def test_check_without_a_file_prints_the_embedded_defaults(capsys, monkeypatch):
    """They are what `make run` serves."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    assert main(["check"]) == 0
    assert "route     headgate-demo -> demo (local)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("metadata_limits", "max_pairs (default 16)\n      How many pairs a call may carry."),
        ("upstream", "base_url (required)"),
        ("redis", "timeout_ms (default 50)"),
    ],
)
def test_explain_prints_docstring_and_keys(name: str, printed: str, capsys):
    """For a policy, a backend and a store."""
    assert main(["explain", name]) == 0
    out = capsys.readouterr().out

    assert out.startswith(f"{name}: ")
    assert printed in out
    assert "Source:" in out


@pytest.mark.parametrize("name", ["nothing", "_template", "os.path", "../x"])
def test_explain_of_an_unknown_name_is_an_input_error(name: str, capsys):
    """Exit status 2 and a sentence, not a traceback."""
    code = main(["explain", name])

    assert (code, capsys.readouterr().err) == (2, f"There is no policy, backend or store called '{name}'.\n")


def test_help_shows_an_example():
    """An example to copy; the module runs like the command."""
    done = subprocess.run([sys.executable, "-m", "proxy", "--help"], capture_output=True, text=True, check=True)

    assert "example: headgate serve --config my.toml" in done.stdout


def test_a_missing_file_is_an_input_error(tmp_path: Path, capsys):
    """The message names the file."""
    code = main(["serve", "--config", str(tmp_path / "none.toml")])

    assert (code, capsys.readouterr().err) == (2, f"{tmp_path / 'none.toml'}: No such file or directory\n")


def test_a_server_returns_the_memory_of_large_blocks_when_they_are_freed():
    """Also of those between smaller ones that are still in use, as the chunks of a request's body are."""
    script = """
        from pathlib import Path
        from proxy.__main__ import return_freed_memory

        def resident_kb():
            return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

        return_freed_memory()
        before = resident_kb()
        bytearray(8_000_000).clear()  # freeing this would raise glibc's threshold
        large, small = [], []
        for _ in range(1000):
            large.append(bytearray(250_000))
            small.append(bytearray(2_000))
        most = resident_kb()
        large.clear()
        print(most - before > 200_000, resident_kb() - before < 50_000)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)

    assert run.stdout == "True True\n"


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_a_port_that_is_none_is_exit_2(port: str, capsys):
    """The message names the option."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--port", port])

    assert caught.value.code == 2
    assert "argument --port: invalid" in capsys.readouterr().err
