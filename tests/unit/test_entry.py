"""The values that a command line cannot express reach a cold job's Snakemake."""

import argparse
import os
import pickle

import pytest

from snakemake_executor_plugin_dask.interior.snakemake_command_line import override
from snakemake_executor_plugin_dask.worker.entry import read_overrides


def test_overrides_come_through_a_descriptor():
    """They are read, and the descriptor is closed."""
    descriptor = os.memfd_create("test")
    os.write(descriptor, pickle.dumps({"target_jobs": ["a,b"]}))
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert read_overrides(descriptor) == {"target_jobs": ["a,b"]}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_values_replace_those_of_the_arguments():
    """A name that Snakemake does not know means another version of it, and is said."""
    namespace = argparse.Namespace(target_jobs=None)
    override(namespace, {"target_jobs": ["x"]})
    assert namespace.target_jobs == ["x"]
    with pytest.raises(AttributeError, match="no argument with the destination `gone`"):
        override(namespace, {"gone": 1})
