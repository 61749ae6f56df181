"""With what a run's workers begin."""

import os
import resource

from snakemake_executor_plugin_dask.frontend.beginning import begins


def test_it_is_what_this_process_has() -> None:
    """Looked at, and not changed."""
    before = os.umask(0o027)
    try:
        begun = begins("/work", {"A": "1"}, "python")
        assert begun.umask == 0o027 == os.umask(0o027)
    finally:
        os.umask(before)
    assert (begun.workdir, begun.environment, begun.python, begun.replace_environment) == (
        "/work",
        {"A": "1"},
        "python",
        True,
    )
    assert dict(begun.soft_limits)[resource.RLIMIT_NOFILE] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
