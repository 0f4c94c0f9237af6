"""The wheel: it contains everything that serving needs, but neither training code nor tests."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """The names of the files in a wheel that is built from a copy of the checkout."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for folder in ("proxy", "policies", "backends", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_contains_no_training_code_and_no_tests(packaged):
    assert [name for name in packaged if name.startswith(("backends/training", "tests"))] == []


def test_the_wheel_contains_every_module_that_serves(packaged):
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("proxy", "policies", "backends")
        for path in (ROOT / folder).rglob("*.py")
        if ROOT / "backends" / "training" not in path.parents
    }

    assert modules - set(packaged) == set()


def test_the_wheel_contains_the_demo_model(packaged):
    """`headgate serve` needs no file beside the installed package."""
    model = {f"backends/demo/{path.name}" for path in (ROOT / "backends" / "demo").iterdir()}

    assert model - set(packaged) == set()
