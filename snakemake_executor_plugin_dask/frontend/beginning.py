"""With what a run's workers begin, as this process has it. Imports little."""

import os
import resource
from collections.abc import Mapping

from snakemake_executor_plugin_dask.model.jobs import Beginning

_SOFT_LIMITS = tuple(
    getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)


def begins(workdir: str, environment: Mapping[str, str], python: str, *, replace_environment: bool = True) -> Beginning:
    """With what this process's run begins. Not while other threads make files: the umask is set for a moment."""
    umask = os.umask(0o077)
    os.umask(umask)
    return Beginning(
        workdir=workdir,
        umask=umask,
        soft_limits=tuple((number, resource.getrlimit(number)[0]) for number in _SOFT_LIMITS),
        environment=dict(environment),
        replace_environment=replace_environment,
        python=python,
    )
