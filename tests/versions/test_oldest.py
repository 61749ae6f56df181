"""The plugin with the oldest Snakemake and Dask that it allows, in an environment of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.variant
@pytest.mark.timeout(1500)  # most of it for the installation
def test_the_oldest_versions() -> None:
    """All private names are there, short jobs start at depth 3, and a few of the core's tests pass."""
    (wheel,) = Path(sys.prefix, "wheel").glob("*.whl")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-P", root / ".ci" / "versions.py", "oldest", "--tests", "few", "--rounds", "0"]
    places = ["--wheel", wheel, "--environments", Path(sys.prefix, "versions")]
    environment = {**os.environ, "TEST_PROCESSES": "1"}
    done = subprocess.run([*command, *places], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
