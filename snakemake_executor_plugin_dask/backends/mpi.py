"""Workers that an MPI launcher starts, one on each node of an allocation or several on this machine.

The launcher only starts processes: a worker is the ordinary one, and never calls `MPI_Init`. So nothing forbids it to
start processes of its own, and no MPI library is needed. One `WorkerProcess` is one launcher with a pool's workers.
"""

import asyncio
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from snakemake_executor_plugin_dask.backends import worker_command
from snakemake_executor_plugin_dask.backends.base import (
    Backend,
    Link,
    ProcessHere,
    WorkerProcess,
    make_private,
    shown_config,
    shown_link,
    write_worker_config,
)
from snakemake_executor_plugin_dask.model.batch_systems import BatchSystem, slurm_steps
from snakemake_executor_plugin_dask.model.batch_systems.slurm import SLURM
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node import descriptors
from snakemake_executor_plugin_dask.node.allocation import allocation_nodes, batch_system, in_allocation
from snakemake_executor_plugin_dask.node.environment import OF_THE_NODE
from snakemake_executor_plugin_dask.node.hosts import (
    UNBOUND,
    host_environment,
    host_file,
    hydra_file,
    slots_file,
    spread,
)
from snakemake_executor_plugin_dask.node.machine import Machine, this_machine
from snakemake_executor_plugin_dask.node.private import write_private
from snakemake_executor_plugin_dask.node.processes import how_ended, kill_worker

Kind = Literal["srun", "openmpi", "hydra", "other"]

#: How often a worker that was killed, or lost its supervisor, is started again on its node by the same launcher.
RESTARTS = 3

#: Runs beside each worker. A launcher ends all its processes when one of them is killed or fails, so none ever does;
#: and only here, on the node itself, can a worker be started again where it was. Exit code 2: its supervisor died.
_KEEPER = (
    'n=0; while :; do SNAKEMAKE_DASK_RESTARTS=$n "$@"; code=$?; '
    f"{{ [ $code -ge 128 ] || [ $code -eq 2 ]; }} && [ $n -lt {RESTARTS} ] || break; "
    'n=$((n+1)); echo "the worker on $(hostname) ended with exit code $code, and is started again" >&2; sleep 1; done; '
    '[ $code -eq 0 ] || echo "the worker on $(hostname) ended with exit code $code" >&2; exit 0'
)

_OPTIONS = ("launcher", "interface")
_CLOSE_S = 5.0  # a launcher that was told to end gets so long, with its workers


@dataclass(frozen=True, slots=True)
class Launcher:
    """A launcher's command, up to what it is to start."""

    kind: Kind
    command: tuple[str, ...]


def find_launcher(
    pool: Pool,
    environ: Mapping[str, str],
    which: Callable[[str], str | None] = shutil.which,
    version: Callable[[str], str] | None = None,
    *,
    root: bool | None = None,
) -> Launcher:
    """The launcher that the pool names, else the one at hand, with the arguments for one worker on each node.

    ``version`` gives what a program says to ``--version``. Raises ConfigurationError where there is none.
    """
    version = version or _version
    root = os.geteuid() == 0 if root is None else root
    count = pool.workers_max
    given = pool.options.get("launcher")
    if given is not None:
        words = _given(pool)
        if not words or which(words[0]) is None:
            program = words[0] if words else repr(given)
            msg = f"pool {pool.name}: the launcher {program} is not on PATH; correct `launcher`."
            raise ConfigurationError(msg)
        kind = _kind(words[0], version)
        if len(words) > 1:  # the whole call is the user's
            return Launcher(kind, tuple(words))
        program = words[0]
    elif batch_system(environ) is SLURM and which("srun") is not None:
        kind, program = "srun", "srun"
    else:
        found = next((name for name in ("mpirun", "mpiexec") if which(name) is not None), None)
        if found is None:
            msg = (
                f"pool {pool.name}: no launcher was found on PATH (srun in a Slurm allocation, mpirun or mpiexec); "
                "load the site's MPI module, install one (Debian: apt install openmpi-bin), or name it: "
                "--dask-options '{launcher: /path/to/mpirun}'."
            )
            raise ConfigurationError(msg)
        kind, program = _kind(found, version), found
    # An allocation of one node, asked for several workers, is like a laptop: they share it.
    shared = kind != "srun" and allocation_nodes(environ) < count
    return Launcher(kind, (program, *_arguments(kind, count, shared=shared, root=root)))


def _arguments(kind: Kind, count: int, *, shared: bool, root: bool) -> list[str]:
    number = str(count)
    if kind == "srun":
        return slurm_steps.one_on_each(count)
    if kind == "openmpi":
        place = ["--oversubscribe"] if shared else ["--map-by", "ppr:1:node"]
        allow = ["--allow-run-as-root"] if root else []
        return ["-n", number, *place, "--bind-to", "none", *allow]
    return ["-n", number] if shared or kind == "other" else ["-ppn", "1", "-n", number]


def _kind(program: str, version: Callable[[str], str]) -> Kind:
    """Which family a launcher is of: `mpirun` may be any."""
    if os.path.basename(program).startswith("srun"):
        return "srun"
    text = version(program)
    if "Open MPI" in text or "OpenRTE" in text or "PRRTE" in text:
        return "openmpi"
    return "hydra" if "HYDRA" in text or "Intel(R) MPI" in text else "other"


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


class LauncherBackend(Backend):
    """Workers of an allocation that exists already."""

    def __init__(self, environ: Mapping[str, str] = os.environ, machine: Callable[[], Machine] = this_machine) -> None:
        self._environ = environ
        self._machine = machine

    @property
    def on_this_machine(self) -> bool:
        """Whether all workers are here, so that nothing needs to listen beyond loopback."""
        return allocation_nodes(self._environ) == 1

    def complete(self, pool: Pool) -> Pool:
        """What workers have is known here only where they share this machine; else each tells it when it joins."""
        if not self._shares_this_machine(pool):
            return pool
        machine = self._machine()
        return replace(
            pool,
            cores=pool.cores or max(1, machine.cores // pool.workers_max),
            memory_mb=pool.memory_mb or machine.memory_mb // pool.workers_max,
        )

    def notes(self, pool: Pool) -> tuple[str, ...]:
        """Where jobs would run on a login node, most likely by mistake."""
        if not self._shares_this_machine(pool):
            return ()
        workers = f"{pool.workers_max} worker{'s run' if pool.workers_max > 1 else ' runs'}"
        text = f"Pool {pool.name}: no allocation was found, so its {workers} on this host; "
        return (text + "on a cluster, start Snakemake inside an allocation.",)

    def _shares_this_machine(self, pool: Pool) -> bool:
        """Outside any allocation, unless the launcher's call is the user's, who may name other hosts there."""
        return not in_allocation(self._environ) and len(_given(pool)) < 2

    def check(self, pool: Pool) -> None:
        unknown = sorted(set(pool.options) - set(_OPTIONS))
        if unknown:
            msg = (
                f"pool {pool.name}: an mpi pool has no option {', '.join(unknown)}; it has {' and '.join(_OPTIONS)}; "
                'whatever the launcher needs goes into `launcher`: "mpirun -n 3 --mca …".'
            )
            raise ConfigurationError(msg)
        if pool.elastic:
            msg = (
                f"pool {pool.name}: workers {pool.workers_min}-{pool.workers_max} were asked for, but the nodes of an "
                f"allocation do not come and go; give one number, such as {allocation_nodes(self._environ)}."
            )
            raise ConfigurationError(msg)
        if pool.nodes is not None:
            msg = (
                f"pool {pool.name}: a worker of an mpi pool holds one node, so `nodes` has no meaning there; "
                "remove it. A job with nodes=2 takes two of the workers at once."
            )
            raise ConfigurationError(msg)
        launcher = find_launcher(pool, self._environ)
        held = allocation_nodes(self._environ)
        if launcher.kind == "srun" and pool.workers_max > held and len(_given(pool)) < 2:
            msg = (
                f"pool {pool.name}: {pool.workers_max} workers were asked for, but the allocation holds {held} "
                f"node{'s' * (held != 1)}, and `srun` starts one on each; ask for at most {held}."
            )
            raise ConfigurationError(msg)

    def describe(self, pool: Pool) -> str:
        link = shown_link("tls://HOST:PORT")
        return shlex.join(launch_command(find_launcher(pool, self._environ), shown_config(pool, link), link))

    def interface(self, pool: Pool) -> str | None:
        found = pool.options.get("interface")
        return None if found is None else str(found)

    def worker(self, pool: Pool, name: str, link: Link) -> WorkerProcess:
        return LaunchedWorkers(pool, name, link, self._environ)


def launch_command(launcher: Launcher, config: Path, link: Link) -> list[str]:
    """The whole command line: launcher, keeper, worker."""
    command = worker_command(config, link.python)
    return [*launcher.command, "/bin/sh", "-c", _KEEPER, "sh", *command]


def launch_environment(kind: Kind, environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's environment: the batch script's, for `srun` without what would change the shape of its step."""
    if kind == "srun":
        return slurm_steps.for_launcher(environ)
    # Open MPI and Hydra start their own daemons by `srun`, which must not wait for what other steps hold.
    return dict(environ) | (slurm_steps.OVERLAP if batch_system(environ) is SLURM else {})


class LaunchedWorkers(ProcessHere):
    """One launcher with a worker on each node. The workers are called ``<name>-<rank>``."""

    _LOG_TAIL_BYTES = 4000

    def __init__(self, pool: Pool, name: str, link: Link, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(pool, name, link)
        self.group = tuple(f"-{rank}" for rank in range(pool.workers_max))
        self._environ = environ

    async def start(self) -> None:
        try:
            launcher = await asyncio.to_thread(find_launcher, self.pool, self._environ)
            config = write_worker_config(self.pool, self.name, self.link, **self._more())
            command = launch_command(launcher, config, self.link)
            process = await self._begin(command, launch_environment(launcher.kind, self._environ))
            descriptors.restore(process.pid)
        except (OSError, ConfigurationError) as error:
            self.failure = f"the launcher could not be started: {error}"

    def _more(self) -> dict[str, Any]:
        """What the workers' configuration needs beyond the usual."""
        more: dict[str, Any] = {"interface": self.pool.options.get("interface")}
        if self.link.setup is None:  # jobs of later runs get nothing of what this process has from the first one
            more["inherited"] = {name: self._environ[name] for name in OF_THE_NODE if name in self._environ}
        if allocation_nodes(self._environ) == 1 and len(_given(self.pool)) < 2:
            more["local_directory"] = self.link.state_dir  # what a killed worker leaves there is cleared with it
        if "://127." in self.link.scheduler:
            more["host"] = "127.0.0.1"
        return more

    def _why_ended(self, code: int) -> str:
        return f"the launcher ended ({how_ended(code)})"

    async def kill(self) -> bool:
        """End the launcher, which ends its workers everywhere; then what is left here.

        False where it had to be killed while workers were elsewhere: nobody then knows of them, and they end when they
        hear of no renewal.
        """
        process = self._process
        if process is None:
            return True
        asked = True
        if process.returncode is None:
            process.terminate()
            asked = await self._ends(_CLOSE_S)
            if not asked:
                process.kill()
                await process.wait()
        here = allocation_nodes(self._environ) == 1
        link = self.link
        gone = [
            await asyncio.to_thread(kill_worker, link.state_dir, self.name + suffix, tuple(link.runs))
            for suffix in self.group
        ]
        return all(gone) and (asked or here)


def _given(pool: Pool) -> list[str]:
    """The launcher's call, as far as the user gives it."""
    given = pool.options.get("launcher", "")
    return shlex.split(given) if isinstance(given, str) else [str(word) for word in given]


def job_environment(
    holding: Any,
    pool: Pool,
    tasks: int | None,
    state_dir: str,
    environ: Mapping[str, str] = os.environ,
    *,
    system: BatchSystem | None = None,
) -> tuple[tuple[str, str | None], ...]:
    """What a job of several nodes, or one with `mpi`, gets: its hosts, for people and for launchers.

    ``holding`` is the ledger's. ``system``: in whose allocation its worker runs, which others started. Writes the host
    file into the state directory; raises OSError.
    """
    system = batch_system(environ) if pool.kind.launched else system or pool.kind.system
    alone = pool.kind.launched and allocation_nodes(environ) == 1
    here = pool.kind.here or (alone and system is not SLURM)  # its `srun` knows its nodes by their names alone
    names = ["localhost"] * len(holding.hosts) if here else list(holding.hosts)
    cores = list(holding.cores_by_worker.values())
    if len(cores) != len(names):  # a wide worker's nodes share its cores evenly
        cores = [max(1, sum(cores) // len(names))] * len(names)
    hosts = spread(names, cores, tasks)
    directory = Path(state_dir, "hosts")
    make_private(directory)
    path = directory / holding.key
    write_private(path, host_file(hosts).encode())
    write_private(directory / f"{holding.key}.slots", slots_file(hosts).encode())
    write_private(directory / f"{holding.key}.hydra", hydra_file(hosts).encode())
    variables = host_environment(hosts, system, str(path))
    # Cores are counted here and not assigned: Open MPI would bind the ranks of each job to the same ones, and from 5 on
    # it refuses to start more of them than there are.
    return variables + tuple((name, "none") for name in UNBOUND if here and name not in environ)
