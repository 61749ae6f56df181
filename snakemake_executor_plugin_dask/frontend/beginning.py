"""With what a run's workers begin, as this process has it. Imports little."""

import resource
from collections.abc import Mapping

from snakemake_executor_plugin_dask.model.jobs import Beginning

_SOFT_LIMITS = tuple(
    getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
)


def begins(workdir: str, environment: Mapping[str, str], python: str, *, replace_environment: bool = True) -> Beginning:
    """With what this process's run begins."""
    return Beginning(
        workdir=workdir,
        umask=_umask(),
        soft_limits=tuple((number, resource.getrlimit(number)[0]) for number in _SOFT_LIMITS),
        environment=dict(environment),
        replace_environment=replace_environment,
        python=python,
    )


def _umask() -> int:
    """As the kernel tells it. To ask by `os.umask` is to set it, for other threads' files as well."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
