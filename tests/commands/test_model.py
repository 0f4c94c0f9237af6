"""`headgate model convert` and `headgate model check` on the command line."""

import sys

import pytest

from proxy.__main__ import main
from tests.checkpoints import save_checkpoint, write_checkpoint
from tests.models import write_model


def test_check_prints_the_properties_of_a_model(tmp_path, capsys):
    """The lines are aligned."""
    folder = write_model(tmp_path / "model", ["Hello"])
    code = main(["model", "check", str(folder), "--device", "cpu"])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert f"model           {folder}\n" in printed.out
    assert "context         512 tokens\n" in printed.out
    assert "tools           hermes\n" in printed.out
    assert "first token     'Hello'\n" in printed.out
    assert {16} == {len(line) - len(line[16:]) for line in printed.out.splitlines() if line[15] == " " != line[16]}


def test_check_of_an_unusable_model_exits_with_1(tmp_path, capsys):
    """It prints the reason without a traceback."""
    folder = write_model(tmp_path / "model")
    (folder / "model.bin").write_bytes(b"\x06")
    code = main(["model", "check", str(folder)])
    printed = capsys.readouterr()

    assert (code, printed.err) == (1, f"{folder}/model.bin is damaged or incomplete, at byte 1 of 1.\n")
    assert main(["model", "check", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"There is no model folder {tmp_path}/none.\n"


@pytest.mark.parametrize(
    ("kind", "weights", "message"),
    [
        ("phi3", "model.safetensors", "A model of the type 'phi3' cannot be converted"),
        ("llama", "pytorch_model.bin", "pytorch_model.bin may run code when it is read"),
    ],
)
def test_convert_refuses_an_unsupported_checkpoint(tmp_path, capsys, kind, weights, message):
    """It exits with 2, because the input is invalid."""
    source = write_checkpoint(tmp_path / "from", kind, weights=weights)
    code = main(["model", "convert", str(source), str(tmp_path / "to")])
    found = capsys.readouterr()

    assert (code, found.out) == (2, "")
    assert message in found.err
    assert not (tmp_path / "to").exists()


def test_convert_names_a_missing_extra(tmp_path, capsys, monkeypatch):
    """The error is one sentence."""
    monkeypatch.setitem(sys.modules, "torch", None)
    code = main(["model", "convert", str(write_checkpoint(tmp_path / "from")), str(tmp_path / "to")])

    assert (code, capsys.readouterr().err) == (
        2, 'Converting needs torch and transformers, which are not installed: pip install "headgate[convert]".\n',
    )  # fmt: skip


def test_convert_refuses_an_unknown_quantization(tmp_path, capsys):
    """The error comes before any file is read."""
    with pytest.raises(SystemExit) as refused:
        main(["model", "convert", "from", "to", "--quantization", "int4"])

    assert refused.value.code == 2
    assert "int4" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_converted_model_can_be_checked(tmp_path, capsys):
    """This runs the conversion from checkpoint to model folder where torch is installed."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    source = save_checkpoint(tmp_path / "from", "Qwen2")

    assert main(["model", "convert", str(source), str(tmp_path / "to"), "--quantization", "int8"]) == 0
    assert "compared   with the original on 64 random tokens: deviates by" in capsys.readouterr().out
    assert main(["model", "check", str(tmp_path / "to"), "--device", "cpu"]) == 0
    assert "architecture    qwen2\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_conversion_that_deviates_exits_with_1(tmp_path, capsys, monkeypatch):
    """It is not 2, because the input is valid."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    monkeypatch.setattr("backends.local.conversion.verification.MAX_DEVIATION", 0.0)
    code = main(["model", "convert", str(save_checkpoint(tmp_path / "from")), str(tmp_path / "to")])

    assert code == 1
    assert "would answer differently from the original" in capsys.readouterr().err
