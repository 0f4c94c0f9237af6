"""The description of the machine of a measurement."""

import ctranslate2

from tests.bench.machine import describe_engine


def test_on_a_cpu_the_engine_is_its_version():
    assert describe_engine("cpu") == f"CTranslate2 {ctranslate2.__version__}"


def test_a_gpu_is_named_with_its_driver(tmp_path, monkeypatch):
    """As nvidia-smi prints them."""
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.159.04'\necho 'NVIDIA L4, 580.159.04'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    assert describe_engine("cuda") == (
        f"CTranslate2 {ctranslate2.__version__} on NVIDIA H200, driver 580.159.04; NVIDIA L4, driver 580.159.04"
    )
