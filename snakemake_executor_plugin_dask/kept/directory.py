"""Where clusters that stay are written down, and what tells one from another on this machine.

One directory for each, `$XDG_STATE_HOME/snakemake-dask/<name>`, that nobody else can enter. In it: its certificate, its
record, its lock (`state.Held`), its log. Its name follows from what was asked for, and making the directory is what
decides which of two runs that start at once brings the cluster up: no network file system does that twice.
"""

import contextlib
import functools
import hashlib
import json
import os
import pickle
import resource
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake_executor_plugin_dask.kept.place import root
from snakemake_executor_plugin_dask.model.byname import by_name
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.kept import Asked
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.allocation import allocation_hosts, allocation_id, batch_system, host_name
from snakemake_executor_plugin_dask.node.daskfiles import files
from snakemake_executor_plugin_dask.node.former import Fate, Process, this_process
from snakemake_executor_plugin_dask.node.private import NotPrivate, opened, read_private, write_private
from snakemake_executor_plugin_dask.node.versions import installed_code

if TYPE_CHECKING:
    import ssl

_RECORD = "record.pickle"
_COMING_S = 120.0  # a head that has not said anything for so long will not come

#: By which batch systems' commands choose a cluster, an account or a partition.
_PREFIXES = ("SBATCH_", "DASK_")
#: By these a process is given some of a machine's GPUs.
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_STACK")
_VARIABLES = frozenset(
    "SLURM_CONF SLURM_CLUSTERS PBS_DEFAULT PBS_SERVER SGE_ROOT SGE_CELL LSF_ENVDIR LSB_DEFAULTQUEUE LSB_DEFAULTPROJECT "
    "CONDOR_CONFIG OARCONFFILE".split()
)


@by_name
@dataclass(frozen=True, slots=True)
class Within:
    """The allocation that a head stands in, so that others can ask whether that is gone."""

    system: str
    cluster: str  # the batch system's own name of itself; empty: it has none, and no other host can ask
    id: str


def within(environment: Mapping[str, str]) -> Within | None:
    """Of a process with this environment, where the allocation's end is its end: on one of its nodes.

    A shell on a login node has the variables, too (`salloc`), and a session begun there outlives the allocation.
    """
    system, number = batch_system(environment), allocation_id(environment)
    nodes = {host.partition(".")[0] for host in allocation_hosts(environment)}
    if system is None or number is None or host_name(environment).partition(".")[0] not in nodes:
        return None
    return Within(system.name, environment.get("SLURM_CLUSTER_NAME", ""), number)


@by_name
@dataclass(frozen=True, slots=True)
class Record:
    """What a head has written down of its cluster. Times in seconds since the epoch."""

    name: str
    asked: Asked
    options: Options
    head: Process
    address: tuple[str, int]
    since: float
    within: Within | None = None


_own_code = functools.cache(installed_code)  # a process goes on with what it was started from


def this_installation(environment: Mapping[str, str], *, here: bool) -> dict[str, dict[str, str]]:
    """The part of `Asked` that the machine says. ``here``: the cluster has workers on this machine."""
    from importlib.metadata import PackageNotFoundError, version  # a run that only joins has no need of it

    variables = {
        name: json.dumps(value)
        for name, value in environment.items()
        if name in _VARIABLES or name.startswith(_PREFIXES)
    }
    versions = {}
    for package in ("snakemake", "distributed", "dask-jobqueue", "snakemake-executor-plugin-dask"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = json.dumps(version(package))
    found = {
        "installation": {
            # And not its path: one interpreter has several names, `python` and `python3`.
            "environment": json.dumps(sys.prefix),
            "python": json.dumps(".".join(map(str, sys.version_info[:3]))),
            "code": json.dumps(_own_code()),
            **versions,
        },
        "Dask's configuration": {"files": json.dumps(_dask_configuration(environment))},
        "user": {"uid": str(os.getuid()), "groups": json.dumps(sorted({os.getegid(), *os.getgroups()}))},
        "variables": variables,
    }
    if here:
        process = this_process()
        found["host"] = {name: json.dumps(getattr(process, name)) for name in ("host", "boot", "namespace")}
        # What the head's workers and their jobs could not have beyond its own.
        hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in _LIMITS}
        found["limits"] = {"cores": json.dumps(sorted(os.sched_getaffinity(0))), "hard limits": json.dumps(hard)}
        allocation = {"id": json.dumps(allocation_id(environment))}
        found["allocation"] = allocation | {name: json.dumps(environment.get(name)) for name in DEVICES}
    return found


def _dask_configuration(environment: Mapping[str, str]) -> str:
    """Tells the files of Dask's configuration from others, without Dask; variables are compared by themselves.

    Some come with packages, are written when these are first imported, and set nothing: all their lines are comments.
    """
    digest = hashlib.sha256()
    for path in files(environment):
        with contextlib.suppress(OSError):
            text = path.read_bytes()
            if any(line.strip() and not line.lstrip().startswith(b"#") for line in text.splitlines()):
                digest.update(text + b"\0")
    return digest.hexdigest()[:12]


# One cluster


def make(directory: Path) -> bool:
    """Make a cluster's directory; False where another one has. ConfigurationError where it cannot be."""
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opened(directory.parent) as above:
            os.mkdir(directory.name, 0o700, dir_fd=above)
    except FileExistsError:
        return False
    except OSError as error:
        msg = (
            f"A cluster that stays (--dask-keep) is recorded in {directory.parent}, which cannot be used: "
            f"{error.strerror or error}; set XDG_STATE_HOME to a directory of your own, or omit --dask-keep."
        )
        raise ConfigurationError(msg) from error
    return True


def check(directory: Path) -> None:
    """Raises NotPrivate where other users can enter a cluster's directory. Nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & 0o077:
            raise NotPrivate(directory, f"other users can enter it (mode {mode:o})")


def write(directory: Path, record: Record) -> None:
    """From now on runs find it. Raises OSError."""
    write_private(directory / _RECORD, pickle.dumps(record))


def read(directory: Path) -> Record | None:
    """None where there is none, or it is not the user's own, or of another version."""
    try:
        record = pickle.loads(read_private(directory / _RECORD))
    except Exception:  # noqa: BLE001 - unpickling what another version wrote raises whatever it happens to meet
        return None
    return record if isinstance(record, Record) else None


def of_another_version(directory: Path) -> bool:
    """Whether there is a record of the user's own that this version cannot read."""
    try:
        read_private(directory / _RECORD)
    except OSError:
        return False
    return read(directory) is None


def locked(directory: Path) -> bool:
    """Whether its head has got so far as to say which process it is."""
    return any(path.name == directory.name and former for path, _, former in state.former_runs(directory.parent))


def fate(directory: Path) -> Fate:
    """What became of its head. One that is only starting is alive."""
    for path, found, former in state.former_runs(directory.parent):
        if path.name == directory.name:
            if former is not None:
                return found
            break
    try:
        young = time.time() - directory.stat().st_mtime < _COMING_S
    except OSError:
        return "dead"
    return "alive" if young else "dead"


def all_clusters(environment: Mapping[str, str]) -> Iterator[tuple[Path, Record | None, Fate]]:
    """Those that are written down, by name. Raises NotPrivate where others can change what is written there."""
    for path, found, former in state.former_runs(root(environment)):
        yield path, read(path), found if former is not None else fate(path)


def tls(directory: Path) -> "ssl.SSLContext":
    """To speak with its head. Raises OSError."""
    import ssl

    authority, certificate, key = (directory / name for name in state.TLS_FILES)
    context = ssl.create_default_context(cafile=os.fspath(authority))
    context.check_hostname = False  # the certificate is the cluster's own, and so is its authority
    context.load_cert_chain(certificate, key)
    return context


def forget(directory: Path) -> None:
    """Remove what is written down of it. Raises OSError."""
    state.clear(directory, keep_logs=False)
