"""A cluster that already runs: what is looked at before the first job. Nothing of it is started, scaled or closed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.allocation import NODE_NAMES

#: Names under which clusters declare GPUs; dask-cuda's documentation uses the first.
_GPU_NAMES = ("GPU", "gpu", "gpus")

#: Runs in a worker that may lack this package, so it travels as text.
_LOOK = """
def look(workdir, node_names):
    import importlib.util, os, platform
    from importlib.metadata import PackageNotFoundError, version
    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return ""
    try:
        importable = importlib.util.find_spec("snakemake_executor_plugin_dask.worker.attach") is not None
    except ImportError:
        importable = False
    return {
        "host": next(filter(None, map(os.environ.get, node_names)), platform.node()),
        "importable": importable,
        "plugin": installed("snakemake-executor-plugin-dask"),
        "snakemake": installed("snakemake"),
        "workdir": os.path.isdir(workdir),
    }
"""


def look_expression(workdir: str) -> str:
    """For `Client.run(eval, …)`: what a worker's environment has."""
    return f"[space := {{}}, exec({_LOOK!r}, space), space['look']({workdir!r}, {NODE_NAMES!r})][-1]"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one worker's environment has."""

    host: str
    importable: bool
    plugin: str
    snakemake: str
    workdir: bool


def shortcomings(seen: Sequence[Seen], setup: RunSetup) -> tuple[str, ...]:
    """A sentence for each thing that keeps workers from running this workflow's jobs, with their hosts."""
    found: list[str] = []

    def complain(missing: str, hosts: set[str], change: str) -> None:
        if hosts:
            found.append(f"{missing} on {', '.join(sorted(hosts))}; {change}")

    with_plugin = [worker for worker in seen if worker.importable]
    complain(
        "snakemake-executor-plugin-dask cannot be imported by workers",
        {worker.host for worker in seen if not worker.importable},
        f"install {setup.plugin_version or 'it'} in their environment.",
    )
    for what, here, versions in (
        ("snakemake-executor-plugin-dask", setup.plugin_version, {(w.host, w.plugin) for w in with_plugin}),
        ("snakemake", setup.snakemake_version, {(w.host, w.snakemake) for w in seen}),
    ):
        wrong = {f"{host} ({version or 'not installed'})" for host, version in versions if version != here}
        complain(f"{what} is {here} here, and another", wrong, "install the same version there.")
    if setup.scratch is None:
        complain(
            f"the working directory {setup.workdir} does not exist",
            {worker.host for worker in seen if not worker.workdir},
            "share the file system with the workers, or use `--shared-fs-usage none` and a storage plugin.",
        )
    return tuple(found)


def check(seen: Sequence[Seen], setup: RunSetup, scheduler: str) -> None:
    """Raises ConfigurationError, which names every shortcoming and its hosts."""
    found = shortcomings(seen, setup)
    if found:
        msg = f"The workers of {scheduler} cannot run this workflow's jobs: " + " ".join(found)
        raise ConfigurationError(msg)


def pool_of_worker(resources: Mapping[str, Any], names: Sequence[str], devices: int) -> Pool:
    """The pool as it is for one worker, which declares its resources to Dask itself.

    ``names``: of all integer resources that the cluster's workers declare, so that each worker counts the same ones.
    ``devices``: how many GPUs jobs may hold there.
    """
    return Pool(
        ATTACHED, ATTACHED, gpus=devices, resources=tuple((name, int(resources.get(name, 0))) for name in names)
    )


def devices_of_worker(resources: Mapping[str, Any], found: Sequence[str], taken: Collection[str]) -> tuple[str, ...]:
    """The GPUs that jobs may hold on a worker: of those it sees, as many as it declares, and none of its neighbours'.

    ``taken``: what other workers on the same host have.
    """
    declared = next((int(resources[name]) for name in _GPU_NAMES if name in resources), None)
    return tuple(device for device in found if device not in taken)[:declared]


def resource_names(workers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of all resources that workers declare, but GPUs, sorted."""
    return tuple(sorted({name for resources in workers for name in resources if name not in _GPU_NAMES}))
