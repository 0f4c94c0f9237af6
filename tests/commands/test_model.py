"""`headgate model convert` and `headgate model check`, as a person types them."""

import sys

import pytest

from proxy.__main__ import main
from tests.checkpoints import save_checkpoint, write_checkpoint
from tests.models import write_model


def test_check_prints_what_a_model_can_do(tmp_path, capsys):
    """In aligned lines."""
    folder = write_model(tmp_path / "model", ["Hello"])
    code = main(["model", "check", str(folder), "--device", "cpu"])
    told = capsys.readouterr()

    assert (code, told.err) == (0, "")
    assert f"model           {folder}\n" in told.out
    assert "context         512 tokens\n" in told.out
    assert "tools           hermes\n" in told.out
    assert "first token     'Hello'\n" in told.out
    assert {16} == {len(line) - len(line[16:]) for line in told.out.splitlines() if line[15] == " " != line[16]}


def test_check_of_what_cannot_be_served_is_exit_1(tmp_path, capsys):
    """With the reason, and no traceback."""
    folder = write_model(tmp_path / "model")
    (folder / "model.bin").write_bytes(b"\x06")
    code = main(["model", "check", str(folder)])
    told = capsys.readouterr()

    assert (code, told.err) == (1, f"{folder}/model.bin is damaged or cut off, at byte 1 of 1.\n")
    assert main(["model", "check", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"There is no model folder {tmp_path}/none.\n"


@pytest.mark.parametrize(
    ("kind", "weights", "told"),
    [
        ("phi3", "model.safetensors", "A model of the type 'phi3' cannot be converted"),
        ("llama", "pytorch_model.bin", "pytorch_model.bin may run code when it is read"),
    ],
)
def test_convert_refuses_what_would_be_wrong(tmp_path, capsys, kind, weights, told):
    """Exit 2: it is what was typed that is at fault."""
    source = write_checkpoint(tmp_path / "from", kind, weights=weights)
    code = main(["model", "convert", str(source), str(tmp_path / "to")])
    found = capsys.readouterr()

    assert (code, found.out) == (2, "")
    assert told in found.err
    assert not (tmp_path / "to").exists()


def test_convert_without_its_extra_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    """In one sentence."""
    monkeypatch.setitem(sys.modules, "torch", None)
    code = main(["model", "convert", str(write_checkpoint(tmp_path / "from")), str(tmp_path / "to")])

    assert (code, capsys.readouterr().err) == (
        2, 'Converting takes torch and transformers, which are not there: pip install "headgate[convert]".\n',
    )  # fmt: skip


def test_convert_knows_its_quantizations(tmp_path, capsys):
    """Others are refused by name before anything is read."""
    with pytest.raises(SystemExit) as refused:
        main(["model", "convert", "from", "to", "--quantization", "int4"])

    assert refused.value.code == 2
    assert "int4" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_converted_model_can_be_checked(tmp_path, capsys):
    """The whole way, where torch is there."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    source = save_checkpoint(tmp_path / "from", "Qwen2")

    assert main(["model", "convert", str(source), str(tmp_path / "to"), "--quantization", "int8"]) == 0
    assert "compared   with the original on 64 random tokens: off by" in capsys.readouterr().out
    assert main(["model", "check", str(tmp_path / "to"), "--device", "cpu"]) == 0
    assert "architecture    qwen2\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_says_something_else_is_exit_1(tmp_path, capsys, monkeypatch):
    """Nothing is wrong with what was typed."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    monkeypatch.setattr("backends.local.conversion.proof.ALLOWED", 0.0)
    code = main(["model", "convert", str(save_checkpoint(tmp_path / "from")), str(tmp_path / "to")])

    assert code == 1
    assert "would say something else than the original" in capsys.readouterr().err
