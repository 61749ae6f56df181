"""Which launcher is used and how, and what a job of several nodes is told."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.backends.mpi import (
    LaunchedWorkers,
    Launcher,
    LauncherBackend,
    find_launcher,
    launch_command,
    launch_environment,
)
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.hosts import host_environment, host_file, hydra_file, slots_file, spread
from snakemake_executor_plugin_dask.node.machine import Machine

SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "2(x3)"}
OPEN_MPI = "mpirun (Open MPI) 4.1.4\n"
HYDRA = "HYDRA build details:\n    Version:  4.0.2\n"


def pool(count: int = 3, **options: object) -> Pool:
    """An mpi pool of so many workers."""
    return Pool("mpi", "mpi", workers_min=count, workers_max=count, options=options)


def has(*programs: str) -> Callable[[str], str | None]:
    """A PATH with these programs."""
    return lambda name: f"/usr/bin/{name}" if name in programs else None


def says(text: str) -> Callable[[str], str]:
    """Programs that say this to --version."""
    return lambda _: text


def test_srun_inside_slurm() -> None:
    """Inside an allocation of Slurm its own launcher is taken, one process a node, beside other steps."""
    launcher = find_launcher(pool(), SLURM, has("srun", "mpirun"), says(OPEN_MPI))
    assert launcher.kind == "srun"
    assert launcher.command[:3] == ("srun", "--overlap", "--nodes=3")
    assert {"--ntasks=3", "--ntasks-per-node=1"} <= set(launcher.command)


def test_laptop_with_open_mpi() -> None:
    """Three ranks on one machine are more than Open MPI has slots for, and must not share a core's binding."""
    launcher = find_launcher(pool(), {}, has("srun", "mpirun"), says(OPEN_MPI), root=True)
    assert launcher == Launcher(
        "openmpi", ("mpirun", "-n", "3", "--oversubscribe", "--bind-to", "none", "--allow-run-as-root")
    )


def test_open_mpi_on_an_allocation() -> None:
    """One worker on each node."""
    launcher = find_launcher(pool(), {"NHOSTS": "3"}, has("mpirun"), says(OPEN_MPI), root=False)
    assert launcher.command == ("mpirun", "-n", "3", "--map-by", "ppr:1:node", "--bind-to", "none")


def test_hydra() -> None:
    """MPICH and Intel MPI."""
    assert find_launcher(pool(), {}, has("mpiexec"), says(HYDRA)).command == ("mpiexec", "-n", "3")
    launcher = find_launcher(pool(), {"NHOSTS": "3"}, has("mpiexec"), says("Intel(R) MPI Library for Linux* OS"))
    assert launcher == Launcher("hydra", ("mpiexec", "-ppn", "1", "-n", "3"))


def test_a_given_call_is_left_as_it_is() -> None:
    """A launcher with arguments is the user's whole call; a bare name gets the usual arguments."""
    text = "mpirun --map-by ppr:1:node"
    assert find_launcher(pool(launcher=text), SLURM, has("mpirun"), says(OPEN_MPI)) == Launcher(
        "openmpi", ("mpirun", "--map-by", "ppr:1:node")
    )
    assert find_launcher(pool(launcher="mpiexec"), SLURM, has("srun", "mpiexec"), says(HYDRA)).kind == "hydra"


def test_no_launcher_is_told() -> None:
    """The error names what is looked for and what to do."""
    with pytest.raises(ConfigurationError, match=r"no launcher was found on PATH .* apt install openmpi-bin"):
        find_launcher(pool(), {}, has(), says(""))
    with pytest.raises(ConfigurationError, match="the launcher mpiexac is not on PATH"):
        find_launcher(pool(launcher="mpiexac -n 3"), {}, has("mpirun"), says(""))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Pool("p", "mpi", 3, 3, options={"queue": "q"}), "has no option queue"),
        (Pool("p", "mpi", 0, 3), "workers 0-3 were asked for"),
        (Pool("p", "mpi", 3, 3, nodes=2), "`nodes` has no meaning"),
        (Pool("p", "mpi", 4, 4), "4 workers were asked for, but the allocation holds 3 nodes"),
    ],
)
def test_impossible_pools(wrong: Pool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each complaint comes before anything is started."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=words):
        LauncherBackend(SLURM).check(wrong)
    LauncherBackend(SLURM).check(Pool("p", "mpi", 3, 3))


def link(directory: Path) -> Link:
    """A driver that nobody will reach."""
    return Link("run12345", "tls://127.0.0.1:1", ("127.0.0.1", 2), None, str(directory), None, python="/bin/echo")


def test_workers_outside_an_allocation_are_told_of() -> None:
    """On a login node they are most likely a mistake: one warning, and the plan knows what each of them has."""
    backend = LauncherBackend({}, lambda: Machine(cores=8, memory_mb=9000))
    (note,) = backend.notes(pool(3))
    assert "no allocation was found, so its 3 workers run on this host" in note
    completed = backend.complete(pool(3))
    assert (completed.cores, completed.memory_mb) == (2, 3000)
    assert backend.complete(replace(pool(1), cores=2)).cores == 2


@pytest.mark.parametrize("environment", [SLURM, {"SLURM_JOB_ID": "7"}, {"PBS_NODEFILE": "/n"}, {"LSB_HOSTS": "a b"}])
def test_workers_inside_an_allocation_tell_what_they_have(environment: dict[str, str]) -> None:
    """No warning there, nor where the user's own call of the launcher may name hosts; and nothing is assumed."""
    for backend, asked in (
        (LauncherBackend(environment), pool()),
        (LauncherBackend({}), pool(launcher="mpirun --host a,b")),
    ):
        assert backend.notes(asked) == ()
        assert backend.complete(asked) == asked


def test_ranks_are_named_after_the_launcher(tmp_path: Path) -> None:
    """Dask's specification needs the names of all workers that one launcher starts."""
    process = LaunchedWorkers(pool(3), "mpi-0", link(tmp_path))
    assert process.group == ("-0", "-1", "-2")


def test_the_step_keeps_its_shape() -> None:
    """What `sbatch` was asked for must not become the step's own options."""
    newer = {"SLURM_CPUS_PER_TASK": "2", "SLURM_TRES_PER_TASK": "cpu=2"}  # from 23.11 on `-c 2` says both
    assert launch_environment("srun", SLURM | newer) == {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}
    assert launch_environment("openmpi", SLURM) == {**SLURM, "SLURM_OVERLAP": "1"}
    assert launch_environment("openmpi", {"A": "b"}) == {"A": "b"}


def keeper(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run the keeper around a script in the worker's place."""
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\n" + script)
    worker.chmod(0o755)
    command = launch_command(Launcher("other", ()), Path("config"), link(tmp_path))
    start = command.index("sh")
    return subprocess.run([*command[: start + 1], str(worker)], capture_output=True, text=True, timeout=60, check=False)


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    """The launcher never hears of it; the second worker knows that it is the second."""
    done = keeper(
        tmp_path, f'echo "$SNAKEMAKE_DASK_RESTARTS" >> {tmp_path}/n\n[ "$SNAKEMAKE_DASK_RESTARTS" = 1 ] || kill -9 $$\n'
    )
    assert (tmp_path / "n").read_text() == "0\n1\n"
    assert done.returncode == 0
    assert "ended with exit code 137, and is started again" in done.stderr


def test_a_failing_worker_is_not_started_again(tmp_path: Path) -> None:
    """One that found no scheduler would find none the next time; the launcher's other workers go on."""
    done = keeper(tmp_path, f"echo x >> {tmp_path}/n\nexit 1\n")
    assert (tmp_path / "n").read_text() == "x\n"
    assert done.returncode == 0
    assert "ended with exit code 1\n" in done.stderr


def test_ranks_are_spread_by_cores() -> None:
    """In proportion, without a node left empty."""
    assert spread(("a", "b"), (4, 4), 4) == (("a", 2), ("b", 2))
    assert spread(("a", "b"), (4, 4), None) == (("a", 4), ("b", 4))
    assert spread(("a", "b"), (6, 2), 4) == (("a", 3), ("b", 1))
    assert spread(("a", "b", "c"), (10, 1, 1), 3) == (("a", 1), ("b", 1), ("c", 1))
    assert spread(("a", "a"), (1, 1), 2) == (("a", 2),)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(1, 200))
def test_every_rank_has_a_place(cores: list[int], tasks: int) -> None:
    """No rank is lost, and no node is empty while another holds two."""
    hosts = spread([f"n{i}" for i in range(len(cores))], cores, tasks)
    assert sum(ranks for _, ranks in hosts) == tasks
    assert len(hosts) == min(len(cores), tasks)


def test_hosts_are_told_to_all_launchers() -> None:
    """A file for each in its own form; Slurm's own variables only where it reigns."""
    hosts = (("n2", 2), ("n3", 1))
    assert host_file(hosts) == "n2\nn3\nn2\n"  # each node once before any twice
    assert slots_file(hosts) == "n2 slots=2\nn3 slots=1\n"
    assert hydra_file(hosts) == "n2:2\nn3:1\n"
    plain = dict(host_environment(hosts, None, "/f"))
    assert plain["SNAKEMAKE_DASK_HOSTS"] == "n2,n3"
    assert plain.pop("HYDRA_HOST_FILE") == "/f.hydra"
    assert plain.pop("SNAKEMAKE_DASK_HOSTFILE") == "/f"
    assert {plain[name] for name in plain if name != "SNAKEMAKE_DASK_HOSTS"} == {"/f.slots"}
    assert not any(name.startswith("SLURM") for name in plain)
    slurm = dict(host_environment(hosts, SYSTEMS["slurm"], "/f"))
    assert (slurm["SLURM_HOSTFILE"], slurm["SLURM_TASKS_PER_NODE"], slurm["SLURM_NTASKS"]) == ("/f", "2,1", "3")
