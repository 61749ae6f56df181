"""A job's environment: what comes from Snakemake, from the allocation, from the prologue, and what must not."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.jobs import Size
from snakemake_executor_plugin_dask.node.environment import (
    BEFORE_PROLOGUE,
    base_environment,
    job_environment,
    read_dump,
    size_changes,
)

LOGIN = {"HOME": "/home/u", "PATH": "/conda/bin:/usr/bin", "LANG": "C", "OMP_NUM_THREADS": "8"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_JOB_CPUS_PER_NODE": "48(x2)", "SLURM_NTASKS": "1", "TMPDIR": "/scratch/77"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n2"}
RANK = {
    "OMPI_COMM_WORLD_RANK": "1",
    "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "x",
    "OMPI_MCA_ess": "pmi",
    "PRTE_LAUNCHED": "1",
}

text = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda data: b"\0" not in data)
    .map(lambda data: data.decode("utf-8", "surrogateescape"))
)
names = text.filter(lambda name: "=" not in name)


def dump(environment):
    data = b"\0".join(f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in environment.items())
    return base64.b64encode(data).decode()


@given(st.dictionaries(names, text, max_size=8))
def test_own_machine_gives_snakemakes_environment_byte_for_byte(environment):
    """A worker started with Snakemake's environment and Dask's additions changes nothing."""
    own = {**environment, "DASK_CONFIG": "x", "OMP_NUM_THREADS": "1"}
    environment.setdefault("OMP_NUM_THREADS", "8")
    assert base_environment(environment, True, own) == environment


def test_own_machine_inside_an_allocation_changes_nothing():
    """Where Snakemake itself runs in an allocation, a worker beside it has the same variables."""
    environment = {**LOGIN, **BATCH, **STEP}
    assert base_environment(environment, True, dict(environment)) == environment


def test_worker_in_its_own_allocation_gets_that_ones_variables():
    """Snakemake's own batch variables go, the worker's come; the user's stay."""
    snakemake = {
        **LOGIN,
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_NODE": "9",
        "TMPDIR": "/scratch/1",
        "SLURM_CONF": "/etc/s",
    }
    result = base_environment(snakemake, True, {"HOME": "/root", "PATH": "/bin", **BATCH, "DASK_X": "1"})
    assert result == {**LOGIN, **BATCH, "SLURM_CONF": "/etc/s", "SLURM_OVERLAP": "1"}


def test_tmpdir_of_a_login_node_stays_until_the_allocation_has_one():
    """TMPDIR that the user set outside any allocation is the user's own."""
    snakemake = {**LOGIN, "TMPDIR": "/home/u/tmp"}
    assert base_environment(snakemake, True, {"PBS_JOBID": "3"})["TMPDIR"] == "/home/u/tmp"
    assert base_environment(snakemake, True, {"PBS_JOBID": "3", "TMPDIR": "/l"})["TMPDIR"] == "/l"


def test_rank_of_an_inner_launcher_is_not_inherited():
    """A worker that `srun` or `mpirun` started leaves no trace of the step, so that an inner launcher works."""
    result = base_environment(
        LOGIN, True, {**BATCH, **STEP, **RANK, "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)"}
    )
    assert not set(result) & {*STEP, *RANK, "SLURM_NTASKS"}
    assert result["SLURM_OVERLAP"] == "1"
    assert result["SLURM_TASKS_PER_NODE"] == "48(x2)", "Open MPI takes its slots from it"


def test_step_of_the_same_allocation_keeps_the_allocations_own_values():
    """Snakemake in a batch script, workers of `srun` in the same allocation: only the node's variables differ."""
    snakemake = {**LOGIN, **BATCH, "SLURM_PROCID": "0", "CUDA_VISIBLE_DEVICES": "0"}
    own = {**snakemake, **STEP, "SLURM_NTASKS": "4", "CUDA_VISIBLE_DEVICES": "2,3", "TMPDIR": "/scratch/node2"}
    own["SNAKEMAKE_DASK_RESTARTS"] = "0"  # as the keeper of a worker sets it that the plugin's own launcher started
    result = base_environment(snakemake, True, own)
    assert result == {**LOGIN, **BATCH, "CUDA_VISIBLE_DEVICES": "2,3", "TMPDIR": "/scratch/node2", "SLURM_OVERLAP": "1"}


def test_grid_engines_short_names_count_only_beside_its_marks():
    """`QUEUE` is a user's variable, unless Grid Engine set it."""
    snakemake = {**LOGIN, "QUEUE": "mine"}
    assert base_environment(snakemake, True, {"PBS_JOBID": "3"})["QUEUE"] == "mine"
    result = base_environment(
        snakemake, True, {"SGE_TASK_ID": "undefined", "JOB_ID": "5", "QUEUE": "all.q", "SGE_ROOT": "/s"}
    )
    assert (result["QUEUE"], result["JOB_ID"]) == ("all.q", "5")


def test_prologue_changes_reach_the_job():
    """What it set, changed and removed; lists such as PATH grow around the job's own value."""
    before = {"PATH": "/bin", "LD_LIBRARY_PATH": "", "OLD": "1", "MODE": "a", "LANG": "C"}
    after = {
        "PATH": "/mod/bin:/bin",
        "LD_LIBRARY_PATH": "/mod/lib",
        "MODE": "b",
        "LANG": "C",
        "DASK_Y": "1",
        "SHLVL": "3",
    }
    result = base_environment(
        {**LOGIN, "OLD": "1"}, True, {**after, **BATCH, BEFORE_PROLOGUE: dump({**before, **BATCH})}
    )
    assert result["PATH"] == "/mod/bin:/conda/bin:/usr/bin"
    assert (result["LD_LIBRARY_PATH"], result["MODE"]) == ("/mod/lib", "b")
    assert not set(result) & {"OLD", "DASK_Y", "SHLVL", BEFORE_PROLOGUE}


def test_prologue_may_set_mpi_settings_but_a_launcher_may_not():
    """`OMPI_MCA_*` from a module file stays; the same prefix from `mpirun` goes."""
    own = {"PBS_JOBID": "3", "OMPI_MCA_btl": "tcp", BEFORE_PROLOGUE: dump({"PBS_JOBID": "3"})}
    assert base_environment(LOGIN, True, own)["OMPI_MCA_btl"] == "tcp"
    assert "OMPI_MCA_btl" not in base_environment(LOGIN, True, {**own, **RANK})


def test_attached_cluster_gives_the_workers_environment_without_dasks_additions():
    """Without TLS only declared variables travel; the nanny's thread counts go, the user's own stay."""
    nanny = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "4",
        "PYTHONHASHSEED": "6640",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    result = base_environment({"SECRET": "s"}, False, {"HOME": "/w", "DASK_Z": "1", **nanny, **RANK})
    assert result == {"HOME": "/w", "MKL_NUM_THREADS": "4", "SECRET": "s"}
    assert base_environment({}, False, {"OMP_NUM_THREADS": "1"}) == {"OMP_NUM_THREADS": "1"}


def test_steps_of_others_let_inner_steps_have_memory():
    """A step that was started without --overlap holds the allocation's memory, and an inner one would get none."""
    own = {"HOME": "/w", "SLURM_JOB_ID": "77", "SLURM_MEM_PER_CPU": "1000", **STEP}
    result = base_environment({}, False, own)
    assert result == {"HOME": "/w", "SLURM_JOB_ID": "77", "SLURM_OVERLAP": "1", "SLURM_MEM_PER_NODE": "0"}
    batch = {"SLURM_JOB_ID": "77", "SLURM_MEM_PER_CPU": "1000"}
    assert base_environment({}, False, batch)["SLURM_MEM_PER_CPU"] == "1000"


def test_batch_script_with_a_number_of_its_own_is_no_step():
    """Slurm 26.05 gives batch scripts the step -5: what they say of the allocation still holds."""
    own = {**BATCH, "SLURM_MEM_PER_CPU": "1000", "SLURM_NTASKS_PER_NODE": "1"}
    numbered = {**own, "SLURM_STEP_ID": "-5", "SLURM_STEPID": "-5"}
    assert base_environment(LOGIN, True, numbered) == base_environment(LOGIN, True, own)
    assert base_environment({}, False, numbered) == base_environment({}, False, own)


def test_settings_for_steps_are_the_users_outside_of_one():
    """What a batch script or a prologue set for `srun` reaches jobs; what the `srun` of a worker set does not."""
    settings = {"SLURM_MPI_TYPE": "pmix", "SLURM_CPU_BIND": "none", "SLURM_CPU_BIND_TYPE": "none"}
    settings |= {"SLURM_DISTRIBUTION": "cyclic", "SLURM_MEM_BIND": "none"}
    prologue = {**BATCH, **settings, BEFORE_PROLOGUE: dump(BATCH)}
    assert base_environment(LOGIN, True, prologue).items() >= settings.items()
    batch = {**LOGIN, **BATCH, **settings}
    of_srun = {**batch, **STEP, "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MPI_TYPE": "none"}
    assert base_environment(batch, True, of_srun).items() >= settings.items()
    assert not base_environment(LOGIN, True, of_srun).keys() & settings.keys()


def test_inner_steps_get_the_jobs_environment():
    """`sbatch --export=NONE` would let `srun` start programs without it, unless the prologue wants that."""
    batch = {**BATCH, "SLURM_EXPORT_ENV": "NONE"}
    assert "SLURM_EXPORT_ENV" not in base_environment(LOGIN, True, batch)
    assert "SLURM_EXPORT_ENV" not in base_environment({**LOGIN, **batch}, True, {**batch, **STEP})
    assert "SLURM_EXPORT_ENV" not in base_environment({}, False, {**LOGIN, **batch})
    wanted = {**BATCH, "SLURM_EXPORT_ENV": "NONE", BEFORE_PROLOGUE: dump(BATCH)}
    assert base_environment(LOGIN, True, wanted)["SLURM_EXPORT_ENV"] == "NONE"


SIZE = Size(cores=4, tasks=2, cores_per_task=2, memory_mb=1049, devices=1)


@pytest.mark.parametrize(
    ("base", "kept", "said"),
    [
        (
            {"SLURM_CPUS_PER_TASK": "48", "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_ID": "7"},
            (),
            {"SLURM_CPUS_PER_TASK": "2", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "7"},
        ),
        ({"SLURM_CPUS_PER_TASK": "48"}, {"SLURM_CPUS_PER_TASK"}, {"SLURM_CPUS_PER_TASK": "48"}),
        ({"SLURM_MEM_PER_CPU": "99", "SLURM_NTASKS_PER_NODE": "1"}, (), {"SLURM_MEM_PER_NODE": "1000"}),
        ({"SLURM_MEM_PER_CPU": "99"}, {"SLURM_MEM_PER_CPU"}, {"SLURM_MEM_PER_CPU": "99"}),
        ({"SLURM_MEM_PER_NODE": "0"}, (), {"SLURM_MEM_PER_NODE": "0"}),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "4"}, (), {"SLURM_GPUS_ON_NODE": "1"}),
        ({"PBS_NCPUS": "48", "LSB_DJOB_NUMPROC": "48"}, (), {"PBS_NCPUS": "4", "LSB_DJOB_NUMPROC": "4"}),
        ({"SGE_TASK_ID": "undefined", "NSLOTS": "48"}, (), {"SGE_TASK_ID": "undefined", "NSLOTS": "4"}),
        ({"NSLOTS": "mine", "OMP_NUM_THREADS": "8"}, (), {"NSLOTS": "mine", "OMP_NUM_THREADS": "8"}),
    ],
)
def test_size_is_the_jobs_own(base, kept, said):
    """Variables that state the allocation's size state the job's, but for those that the prologue set."""
    found = job_environment(base, "k", size_changes(base, SIZE, kept))
    assert found == {**said, "SNAKEMAKE_DASK_JOB": "k"}


def test_documented_variables_are_those_that_change():
    """The table in the documentation names each variable that states a size."""
    text = Path(__file__).parents[2].joinpath("docs/slurm.md").read_text()
    all_of = [system.variables for system in SYSTEMS.values()]
    names = [n for v in all_of for n in (*v.cores, *v.cores_per_task, *v.tasks, *v.memory, *v.of_whole)]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_job_environment_sets_and_removes():
    """Placement's changes and the key are laid over the base."""
    changes = (("CUDA_VISIBLE_DEVICES", "1"), ("HOME", None), ("MISSING", None))
    assert job_environment({"HOME": "/h"}, "k", changes) == {"CUDA_VISIBLE_DEVICES": "1", "SNAKEMAKE_DASK_JOB": "k"}


@given(st.dictionaries(names, text, max_size=5))
def test_dump_is_read_back(environment):
    """Names and values of any bytes survive the way through the dump."""
    assert read_dump(dump(environment)) == environment


def test_dump_that_is_none_changes_nothing():
    """A damaged dump must not remove variables."""
    assert read_dump("%%%") == {}
