"""What all tests share: which package is tested."""

import os
from pathlib import Path

import pytest

import snakemake_executor_plugin_dask


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where the built wheel is to be tested, refuse to test the sources beside the tests instead."""
    package = Path(snakemake_executor_plugin_dask.__file__).resolve().parent
    if os.environ.get("SNAKEMAKE_DASK_TEST_WHEEL") == "1" and package.parent == session.config.rootpath.resolve():
        msg = f"The tests are to run against the installed wheel, but import {package}; start them with ./run tests"
        raise pytest.UsageError(msg)
