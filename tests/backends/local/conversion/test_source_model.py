"""The checkpoint's model needs torch."""

import sys

import pytest

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.source_model import SourceModel
from tests.checkpoints import write_checkpoint


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, name):
    """The model's specification is tested in test_conversion.py."""
    monkeypatch.setitem(sys.modules, name, None)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path))

    with pytest.raises(ModuleNotFoundError, match=r'pip install "headgate\[convert\]"'):
        SourceModel(checkpoint)
