"""Without torch there is no original to read."""

import sys

import pytest

from backends.local.conversion.checkpoint import read_checkpoint
from backends.local.conversion.original import Original
from tests.checkpoints import write_checkpoint


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, name):
    """Its description is tested as a whole, in test_conversion.py."""
    monkeypatch.setitem(sys.modules, name, None)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path))

    with pytest.raises(ModuleNotFoundError, match=r'pip install "headgate\[convert\]"'):
        Original(checkpoint)
