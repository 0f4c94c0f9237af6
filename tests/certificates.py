"""Self-signed certificates for tests of TLS."""

import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, name: str, *, subject: str = "DNS:localhost") -> None:
    """Write a certificate NAME.pem for a subject, and its key NAME.key. Skips the test where openssl cannot.

    The key is one of elliptic curves: an RSA key takes 0.2 s of CPU.
    """
    options = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        f"{name}.key",
        "-out",
        f"{name}.pem",
        "-days",
        "1",
    ]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={subject}"]
    try:
        subprocess.run(["openssl", "req", "-x509", *options, *names], cwd=folder, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("openssl cannot make a certificate here")
