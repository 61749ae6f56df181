"""Batch scripts, what is refused, and what the queue's answers mean. No batch system is needed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest
import settling
from hypothesis import given
from hypothesis import strategies as st
from settling import settle

from snakemake_executor_plugin_dask.backends.allocation import QueueView, log_tail
from snakemake_executor_plugin_dask.backends.base import Link
from snakemake_executor_plugin_dask.backends.jobqueue import JobqueueBackend
from snakemake_executor_plugin_dask.batch import directives
from snakemake_executor_plugin_dask.batch.allocations import Ran, Record
from snakemake_executor_plugin_dask.batch.answers import look, outside_allocation
from snakemake_executor_plugin_dask.batch.meanings import outlook, what_to_change
from snakemake_executor_plugin_dask.config.poolsfile import read_options, read_pools_file
from snakemake_executor_plugin_dask.interior import jobqueue as interior
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen
from snakemake_executor_plugin_dask.model.batch_systems.scripts import granted_bytes
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool


@pytest.fixture(autouse=True)
def no_user_configuration() -> Iterator[None]:
    """Dask's defaults alone, whatever the user or the site has configured."""
    interior.load()
    with dask.config.set({"jobqueue": _defaults()}):
        yield


def _defaults() -> dict[str, Any]:
    import yaml

    module = interior.load()
    text = Path(str(module.__file__)).with_name("jobqueue.yaml").read_text()
    defaults: dict[str, Any] = yaml.safe_load(text)["jobqueue"]
    return defaults


def pool(cluster: str = "slurm", **more: Any) -> Pool:
    settings: dict[str, Any] = {"cores": 1, "memory_mb": 4000, "walltime_s": 1800.0, **more}
    if cluster == "htcondor":
        settings["options"] = {"disk": "1 GB", **settings.get("options", {})}
    return Pool("main", cluster, 0, 4, **settings)


def link(state_dir: Path) -> Link:
    return Link("ab12cd34", "tls://10.0.0.1:1", ("10.0.0.1", 2), ("ca", "cert", "key"), os.fspath(state_dir), "setup")


def directive_lines(script: str, mark: str = "#SBATCH") -> list[str]:
    return [line for line in script.splitlines() if line.startswith(mark)]


# What users know from Dask-Jobqueue

EXAMPLE_FILE = """
pools:
  main:
    cluster: slurm
    workers: 2
    cores: 1
    memory: 16GB
    walltime: "00:30:00"
    options: {account: cin_staff, interface: INTERFACE, job_extra_directives: ["--tasks-per-node=1"]}
"""
EXAMPLE_OPTIONS = (
    "{processes: 1, account: cin_staff, interface: INTERFACE, job_extra_directives: ['--tasks-per-node=1']}"
)


def test_example_is_the_same_as_flags_pools_file_and_configuration(tmp_path: Path) -> None:
    """The three ways give one batch script, with the directives of the SLURMCluster that users know."""
    backend = JobqueueBackend("slurm")
    file = tmp_path / "pools.yaml"
    file.write_text(EXAMPLE_FILE.replace("INTERFACE", "lo"))
    (from_file,), _ = read_pools_file(file)
    options, _ = read_options(EXAMPLE_OPTIONS.replace("INTERFACE", "lo"), "slurm")
    flags = Pool("main", "slurm", 2, 2, cores=1, memory_mb=16000, walltime_s=1800.0, options=options)
    section = {
        "cores": 1,
        "processes": 1,
        "memory": "16GB",
        "account": "cin_staff",
        "walltime": "00:30:00",
        "interface": "lo",
        "job-extra-directives": ["--tasks-per-node=1"],
    }
    with dask.config.set({"jobqueue.slurm": {**_defaults()["slurm"], **section}}):
        configured = backend.complete(Pool("main", "slurm", 2, 2))
        scripts = {backend.describe(configured)}
        assert backend.interface(configured) == "lo"
    scripts |= {backend.describe(from_file), backend.describe(flags)}
    assert len(scripts) == 1
    assert backend.interface(from_file) == backend.interface(flags) == "lo"
    lines = directive_lines(scripts.pop())
    wanted = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "from dask_jobqueue import SLURMCluster\n"
                "cluster = SLURMCluster(cores=1, processes=1, memory='16GB', account='cin_staff',\n"
                "    walltime='00:30:00', interface='lo', job_extra_directives=['--tasks-per-node=1'])\n"
                "print(cluster.job_script())"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"HOME": os.fspath(tmp_path), "DASK_CONFIG": os.fspath(tmp_path)},
    ).stdout
    own = ("-J ", "-e ", "-o ", "--no-requeue")
    assert [line for line in lines if not line.removeprefix("#SBATCH ").startswith(own)] == [
        line for line in directive_lines(wanted) if not line.startswith("#SBATCH -J ")
    ]


def test_import_leaves_signal_handler_and_home_directory(tmp_path: Path) -> None:
    """Loading dask_jobqueue changes neither the SIGINT handler nor the home directory, also off the main thread."""
    program = (
        "import signal, threading\n"
        "from snakemake_executor_plugin_dask.interior.jobqueue import load\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "thread = threading.Thread(target=load); thread.start(); thread.join()\n"
        "assert load().SLURMCluster\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"HOME": os.fspath(tmp_path)})
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.parametrize("cluster", SYSTEMS)
def test_script_of_each_batch_system(cluster: str, tmp_path: Path) -> None:
    """Each renders the worker's command without secrets, the allocation's name, its logs, and is never requeued."""
    backend = JobqueueBackend(cluster)
    _, path = backend.write(pool(cluster), "main-0", link(tmp_path))
    script = path.read_text()
    assert "-P -m snakemake_executor_plugin_dask.worker --config" in script
    assert f"{tmp_path}/workers/main-0.json" in script
    assert "snakemake-ab12cd34-main" in script
    assert f"{tmp_path}/logs" in script
    never = {"slurm": "--no-requeue", "lsf": "-rn", "oar": "-n snakemake", "htcondor": "NumJobStarts > 0"}
    assert never.get(cluster, "-r n") in script
    assert "cert" not in script


def test_prologue_is_preceded_by_what_it_may_change(tmp_path: Path) -> None:
    """The environment before the prologue is kept, so that the worker knows what the prologue changed."""
    backend = JobqueueBackend("slurm")
    _, path = backend.write(pool(options={"job_script_prologue": ["module load x"]}), "main-0", link(tmp_path))
    lines = path.read_text().splitlines()
    assert lines[lines.index("module load x") - 1] == directives.BEFORE_PROLOGUE


def test_paths_that_scripts_would_cut(tmp_path: Path) -> None:
    """A working directory with spaces and patterns: the log directory is named relative to where it is submitted."""
    state = tmp_path / "a b %j 'c"
    state.mkdir()
    _, path = JobqueueBackend("slurm").write(pool(), "main-0", link(state))
    script = path.read_text()
    assert "#SBATCH -o ./snakemake-" in script
    command = script.splitlines()[-1]
    import shlex

    assert shlex.split(command)[-1] == f"{state}/workers/main-0.json"


WIDE = {
    "slurm": ["#SBATCH --nodes=3", "#SBATCH --ntasks-per-node=8", "#SBATCH --cpus-per-task=1"],
    "pbs": ["#PBS -l select=3:ncpus=8:mpiprocs=8:mem=3815MB", "#PBS -l place=scatter"],
    "moab": ["#PBS -l nodes=3:ppn=8", "#PBS -l mem=11445mb"],
    "lsf": ["#BSUB -n 24", '#BSUB -R "span[ptile=8]"'],
    "oar": ["#OAR -l /nodes=3/core=8,walltime=00:30:00"],
}


@pytest.mark.parametrize("cluster", SYSTEMS)
def test_several_nodes(cluster: str) -> None:
    """`nodes` is rendered with sizes for each node, or refused by what cannot do it."""
    backend = JobqueueBackend(cluster)
    wide = pool(cluster, nodes=3, cores=8)
    if cluster not in WIDE:
        with pytest.raises(ConfigurationError, match="several nodes is not possible"):
            backend.describe(wide)
        return
    script = backend.describe(wide)
    assert set(WIDE[cluster]) <= set(script.splitlines())
    assert "#SBATCH -n 1" not in script
    assert "span[hosts=1]" not in script


@pytest.mark.parametrize(
    ("cluster", "options", "line"),
    [
        ("slurm", {}, "#SBATCH --gres=gpu:2"),
        ("pbs", {}, "#PBS -l select=1:ncpus=1:ngpus=2:mem=3815MB"),
        ("moab", {}, "#PBS -l nodes=1:ppn=1:gpus=2"),
        ("lsf", {}, "#BSUB -gpu num=2"),
        ("htcondor", {}, "request_gpus = 2"),
        ("sge", {"resource_spec": "gpu=2"}, "#$ -l gpu=2"),
        ("slurm", {"job_extra_directives": ["--gpus-per-node=a100:2"]}, "#SBATCH --gpus-per-node=a100:2"),
    ],
)
def test_gpus_are_asked_for_once(cluster: str, options: dict[str, Any], line: str) -> None:
    """GPUs are asked for in the batch system's words, unless the options do so already."""
    script = JobqueueBackend(cluster).describe(pool(cluster, gpus=2, options=options))
    assert line in script.splitlines()
    assert sum("gpu" in found.lower() for found in script.splitlines()) == 1


@pytest.mark.parametrize("cluster", ["sge", "oar"])
def test_gpus_that_only_the_site_can_name(cluster: str) -> None:
    """Where each site has its own name for GPUs, the options must ask for them."""
    with pytest.raises(ConfigurationError, match="names GPUs its own way"):
        JobqueueBackend(cluster).describe(pool(cluster, gpus=2))


def test_grid_engine_needs_a_parallel_environment() -> None:
    """Several cores without one would be granted a single slot."""
    with pytest.raises(ConfigurationError, match="-pe smp 4"):
        JobqueueBackend("sge").describe(pool("sge", cores=4))
    script = JobqueueBackend("sge").describe(pool("sge", cores=4, options={"job_extra_directives": ["-pe smp 4"]}))
    assert "#$ -pe smp 4" in script


def test_unknown_option_is_named_with_a_close_one() -> None:
    """An option that the class lacks is an error before anything starts."""
    with pytest.raises(ConfigurationError, match="'acount' is not an option of SLURMCluster; did you mean 'account'"):
        JobqueueBackend("slurm").check_options(pool(options={"acount": "x"}))


def test_size_that_nobody_says() -> None:
    """Without cores in settings and configuration the error names where they can be set."""
    with pytest.raises(ConfigurationError, match="--dask-worker-cores"):
        JobqueueBackend("slurm").check_options(pool(cores=None))


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is not installed is named."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ConfigurationError, match="commands bsub, bkill, bjobs are not on PATH"):
        JobqueueBackend("lsf").check(pool("lsf"))


def test_configuration_that_the_plugin_overrules_is_said() -> None:
    """A site's jobqueue.yaml may want several processes; one sentence says that it is not so."""
    with dask.config.set({"jobqueue.slurm.processes": 4, "jobqueue.slurm.worker-extra-args": ["--lifetime", "1h"]}):
        (note,) = JobqueueBackend("slurm").notes(pool())
    assert "processes" in note
    assert "worker-extra-args" in note
    assert JobqueueBackend("slurm").notes(pool()) == ()


@given(st.integers(min_value=1, max_value=2_000_000))
def test_granted_memory_is_enough(memory_mb: int) -> None:
    """What is asked for is whole MiB and never less than the pool's memory, and less than a MiB more."""
    granted = granted_bytes(pool(memory_mb=memory_mb))
    assert granted % 2**20 == 0
    assert 0 <= granted - memory_mb * 10**6 < 2**20


@given(st.sampled_from(sorted(SYSTEMS)), st.integers(min_value=1, max_value=30 * 86400))
def test_walltime_is_read_as_written(cluster: str, seconds: int) -> None:
    """Formatting and reading agree for each batch system, to the minute where it knows no seconds."""
    read = SYSTEMS[cluster].parse_walltime(SYSTEMS[cluster].format_walltime(seconds))
    assert 0 <= read - seconds < (60 if cluster == "lsf" else 1)


@pytest.mark.parametrize(
    ("cluster", "text", "seconds"),
    [
        ("slurm", "90", 5400), ("slurm", "10:30", 630), ("slurm", "1-12", 129600), ("slurm", "1-0:30", 88200),
        ("lsf", "1:30", 5400), ("lsf", "30", 1800), ("pbs", "3600", 3600), ("pbs", "10:30", 630),
        ("oar", "2", 7200), ("oar", "1:30", 5400), ("moab", "1:00:00:00", 86400), ("sge", "0:1:30", 90),
    ],
)  # fmt: skip
def test_walltimes_as_each_batch_system_writes_them(cluster: str, text: str, seconds: float) -> None:
    """The same text means different times to different batch systems."""
    assert SYSTEMS[cluster].parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "infinite", "-1:00:00"])
def test_what_is_no_walltime(text: str) -> None:
    """Other texts are refused."""
    with pytest.raises(ValueError):
        SYSTEMS["slurm"].parse_walltime(text)


# What the queue says

ANSWERS = {
    "slurm": (
        "12|PENDING|Priority\n13|RUNNING|None\n14|FAILED|NonZeroExitCode\n15|PENDING|BadConstraints\n16|COMPLETING|None",
        {"12": ("queued", False), "13": ("running", False), "14": ("gone", False), "15": ("queued", True),
         "16": ("running", False), "17": ("gone", False)},
    ),
    "pbs": (
        ("Job Id: 12.srv\n    job_state = Q\n    comment = Not Running: no nodes\nJob Id: 13.srv\n    job_state = R\n"
        "Job Id: 14.srv\n    job_state = F\n"
        "Job Id: 15.srv\n    job_state = Q\n    comment = Can Never Run: Insufficient amount of resource: ncpus\n"),
        {"12.srv": ("queued", False), "13.srv": ("running", False), "14.srv": ("gone", False),
         "15.srv": ("queued", True)},
    ),
    "lsf": (
        ("JOBID USER STAT QUEUE FROM_HOST EXEC_HOST JOB_NAME SUBMIT_TIME\n12 me PEND normal a - x y\n"
        "13 me RUN normal a b x y\n14 me EXIT normal a b x y\n15 me UNKWN normal a b x y\n"
        "16 me ZOMBI normal a b x y\n"),
        {"12": ("queued", False), "13": ("running", False), "14": ("gone", False), "15": ("unknown", False),
         "16": ("unknown", False)},
    ),
    "sge": (
        ("job-ID prior name user state submit/start at queue slots\n-----\n 12 0.5 x me qw 01/01/2026 1\n"
        " 13 0.5 x me r 1 1\n 14 0.5 x me Eqw 1 1\n 15 0.5 x me dr 1 1\n"),
        {"12": ("queued", False), "13": ("running", False), "14": ("queued", True), "15": ("running", False),
         "16": ("gone", False)},
    ),
    "oar": (
        ("Job_Id: 12\n    state = Waiting\n    message = R=1,W=0:10:0,J=B (Karma=0.000,quota_ok)\n"
        "    scheduledStart = no prediction\nJob_Id: 13\n    state = Running\nJob_Id: 14\n    state = Error\n"),
        {"12": ("queued", False), "13": ("running", False), "14": ("gone", False), "15": ("gone", False)},
    ),
    "moab": (
        ("active jobs---\nJOBID USERNAME STATE PROCS\nMoab.13 me Running 4\neligible jobs\n12 me Idle 4\n"
        "14 me BatchHold 4\n"),
        {"12": ("queued", False), "Moab.13": ("running", False), "14": ("queued", True), "15": ("gone", False)},
    ),
    "htcondor": (
        ("12\t0\t1\tundefined\tundefined\tno match found \tundefined\n"
        "13\t0\t2\tundefined\tundefined\tundefined\tslot1_1@n1\n"
        "14\t0\t5\t7\tError from slot1_2@n1: cannot write\tundefined\tundefined\n"
        "15\t0\t4\tundefined\n17\t0\t5\t1\tvia condor_hold (by user me)\tundefined\tundefined\n"),
        {"12.0": ("queued", False), "13.0": ("running", False), "14.0": ("queued", True), "15.0": ("gone", False),
         "16.0": ("gone", False), "17.0": ("queued", False)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("cluster", SYSTEMS)
def test_queue_answers(cluster: str) -> None:
    """Each batch system's listing is read; what is not listed is gone only if the command succeeded."""
    out, wanted = ANSWERS[cluster]
    seen = look(SYSTEMS[cluster], list(wanted), 0, out, "")
    assert {key: (value.kind, value.stuck) for key, value in seen.items()} == wanted


def test_what_htcondor_says_of_a_job() -> None:
    """Why it waits or is held, and where it runs."""
    out = ANSWERS["htcondor"][0]
    seen = look(SYSTEMS["htcondor"], ["12.0", "13.0", "14.0"], 0, out, "")
    assert seen["12.0"] == Seen("queued", "no match found")
    assert seen["13.0"] == Seen("running", nodes="n1")
    assert seen["14.0"] == Seen("queued", "Error from slot1_2@n1: cannot write", stuck=True)


def test_htcondor_starts_nothing_twice() -> None:
    """What the user requires of a slot stays, however it is spelt."""
    script = JobqueueBackend("htcondor").describe(
        pool("htcondor", options={"disk": "1 GB", "job_extra_directives": {"Requirements": "HasGpu || Big"}})
    )
    assert "requirements = (HasGpu || Big) && MY.NumJobStarts == 0\n" in script
    assert script.lower().count("requirements =") == 1


@pytest.mark.parametrize(("given", "line"), [({}, "job_lease_duration = 45"), ({"Job_Lease_Duration": 300}, "= 300")])
def test_htcondor_gives_a_lost_node_up(given: dict[str, Any], line: str) -> None:
    """Not after its own forty minutes; whoever sets a time of their own has it."""
    script = JobqueueBackend("htcondor").describe(
        pool("htcondor", options={"disk": "1 GB", "job_extra_directives": given})
    )
    (lease,) = [found for found in script.splitlines() if found.lower().startswith("job_lease_duration")]
    assert lease.endswith(line)


def test_what_oar_says_of_a_job() -> None:
    """When it is to start, why it ended, and what it was submitted as once more; noise is left out."""
    ended = (
        "Job_Id: {}\n    state = Error\n    message = R=1,W=0:10:0,J=B (Karma=0.000,quota_ok)\n    events = \n"
        "2026-11-29 01:02:50> SWITCH_INTO_ERROR_STATE:[bipbip 8] Ask to change the job state\n{}\n\n"
    )
    out = (
        "Job_Id: 5\n    state = Waiting\n    message = R=2,W=0:1:30,J=B (Karma=0.000,quota_ok)\n"
        "    scheduledStart = 2026-11-29 03:00:16\n    events = \n\n"
        "Job_Id: 6\n    state = Waiting\n    message = No enough matching resources (no_matching_slot)\n"
        "    scheduledStart = no prediction\n    events = \n\n"
        + ended.format(7, "2026-11-29 01:02:49> OUTPUT_FILES:[bipbip 7] Cannot create .stdout and .stderr files in /a")
        + ended.format(
            8,
            "2026-11-29 01:02:49> PING_CHECKER_NODE_SUSPECTED:[bipbip] OAR suspects nodes for the job 8 : node1\n"
            "2026-11-29 01:03:10> RESUBMIT_JOB_AUTOMATICALLY:[NodeChangeState] Resubmiting job 8 => 9) (due to event)",
        )
        + ended.format(10, "2026-11-29 01:14:33> FRAG_JOB_REQUEST:User root requested to frag the job 10")
    )
    seen = look(SYSTEMS["oar"], ["5", "6", "7", "8", "10"], 0, out, "")
    assert seen["5"] == Seen("queued", expected=time.mktime((2026, 11, 29, 3, 0, 16, 0, 0, -1)))
    assert seen["6"] == Seen("queued", "No enough matching resources (no_matching_slot)")
    assert seen["7"] == Seen("gone", "Cannot create .stdout and .stderr files in /a")
    assert seen["8"] == Seen("gone", "OAR suspects nodes for the job 8 : node1", again="9")
    assert seen["10"] == Seen("gone", "User root requested to frag the job 10")


@pytest.mark.parametrize("cluster", SYSTEMS)
def test_queue_that_does_not_answer(cluster: str) -> None:
    """A command that fails says nothing about an allocation: it is not taken for gone."""
    seen = look(SYSTEMS[cluster], ["12"], 1, "", "cannot connect to server")
    assert seen["12"].kind == "unknown"
    assert "cannot connect" in seen["12"].reason


@pytest.mark.parametrize(
    ("cluster", "error"),
    [
        ("pbs", "qstat: Unknown Job Id 12.srv"),
        ("pbs", "qstat: Unknown Job Id Error 12.srv"),
        ("pbs", "qstat: 12.srv Job has finished, use -x or -H to obtain historical job information"),
        ("lsf", "Job <12> is not found"),
    ],
)
def test_ids_that_the_batch_system_has_forgotten(cluster: str, error: str) -> None:
    """A failed query that names an id as unknown means that this one is gone, and only this one."""
    seen = look(SYSTEMS[cluster], ["12", "13"], 1, "", error)
    assert (seen["12"].kind, seen["13"].kind) == ("gone", "unknown")


def test_lsf_may_call_it_a_failure_that_all_have_finished() -> None:
    """Sites can have `bjobs` exit with 255 then (LSB_BJOBS_CONSISTENT_EXIT_CODE)."""
    assert look(SYSTEMS["lsf"], ["12"], 255, "", "No unfinished job found\n")["12"].kind == "gone"


class Commands:
    """Stands in for the batch system's commands, and for time; records them and answers by their first word."""

    def __init__(self, **answers: list[Ran]) -> None:
        self.answers = answers
        self.ran: list[list[str]] = []
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def __call__(self, command: Sequence[str], **_: Any) -> Ran:
        self.ran.append(list(command))
        answers = self.answers[command[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]


SUBMITTED = Ran(0, "Submitted batch job 12\n", "")


def worker(commands: Commands, state: Path, **more: Any) -> Any:
    backend = JobqueueBackend("slurm", commands, lambda: commands.now, commands.sleep)
    return backend.worker(pool(**more), "main-0", link(state))


def test_failed_submission_keeps_the_commands_own_words(tmp_path: Path) -> None:
    """`start` does not raise; the failure holds command, exit code and error, and nothing is left recorded."""
    commands = Commands(sbatch=[Ran(1, "", "sbatch: error: Invalid account")])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        assert "exit code 1: sbatch: error: Invalid account; name an account of yours: `account`" in process.failure
        assert process.outlook == "final"
        assert (await process.state()).kind == "gone"
        assert await process.kill()

    asyncio.run(check())
    assert Record(tmp_path).entries() == []


def test_the_environment_does_not_overrule_a_pool(tmp_path: Path) -> None:
    """SBATCH_ACCOUNT and its like win over a script's directives, and lose against the command line."""
    commands = Commands(sbatch=[SUBMITTED])
    options = {"account": "mine", "job_extra_directives": ["--comment='a b' --nice=3"]}
    asyncio.run(worker(commands, tmp_path, options=options).start())
    (command,) = commands.ran
    assert command[-1].endswith("main-0.sh")
    words = command[:-1]
    assert words[words.index("-A") + 1] == "mine"
    assert words[-3:] == ["--comment=a b", "--nice=3", "--no-requeue"]
    assert directives.as_arguments("#!/bin/sh\n#SBATCH --comment='a\n", "#SBATCH") == []


REFUSALS = {
    "slurm": "sbatch: error: Batch job submission failed: Invalid qos specification",
    "pbs": "qsub: Unknown queue",
    "moab": "ERROR: cannot submit job - invalid account",
    "lsf": "nope: No such queue. Job not submitted.",
    "sge": 'Unable to run job: Job was rejected because job requests unknown queue "nope".',
    "oar": "[ERROR] There are not enough resources for your request",
    "htcondor": "ERROR: Parse error in expression",
}
MAY_PASS = {
    "slurm": "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
    "pbs": "qsub: would exceed queue generic's per-user limit of jobs in 'Q' state",
    "moab": "ERROR: cannot connect to the server",
    "lsf": "User has reached the per-user job slot limit of the queue. Job not submitted.",
    "sge": "error: commlib error: got select error (Connection refused)",
    "oar": "[ERROR] Cannot connect to the database",
    "htcondor": "ERROR: Failed to connect to local queue manager",
}


@pytest.mark.parametrize("cluster", SYSTEMS)
def test_refusals_that_will_not_pass(cluster: str) -> None:
    """They are told apart from those that may, and say what to change."""
    assert what_to_change(SYSTEMS[cluster], REFUSALS[cluster])
    assert outlook(SYSTEMS[cluster], REFUSALS[cluster]) == "final"
    assert what_to_change(SYSTEMS[cluster], MAY_PASS[cluster]) is None
    assert outlook(SYSTEMS[cluster], MAY_PASS[cluster]) == "passing"
    assert outlook(SYSTEMS[cluster], "a hook of this site says no") == "unknown"


@pytest.mark.parametrize(
    ("cluster", "said", "advice"),
    [
        ("pbs", "qsub: Job violates queue and/or server resource limits", "ask for what that queue allows: walltime"),
        (
            "pbs",
            "qsub: submit error (Job exceeds queue resource limits MSG=cannot satisfy queue max walltime requirement)",
            "give the pool a walltime",
        ),
        ("pbs", "Can Never Run: Not enough total nodes available", "ask for what a node"),
        ("lsf", "RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "give the pool a walltime"),
        ("lsf", "MEMLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "ask for what that queue allows"),
        ("lsf", "Too many processors requested. Job not submitted.", "ask for what that queue allows"),
    ],
)
def test_requests_beyond_a_queues_limits(cluster: str, said: str, advice: str) -> None:
    """They are refused each time, and the advice names what may be too much."""
    assert outlook(SYSTEMS[cluster], said) == "final"
    assert str(what_to_change(SYSTEMS[cluster], said)).startswith(advice)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Requested node configuration is not available", "ask for what a node"),
        ("Requested topology configuration is not available", "ask for what a node"),
        ("Memory required by task is not available", "ask for what a node"),
        ("No partition specified or system default partition", "name a queue"),
        ("Time limit specification required, but not provided", "give the pool a walltime"),
    ],
)
def test_refusals_in_the_words_of_newer_slurm(said: str, advice: str) -> None:
    """From 23.11 on more requests are refused at once, which were queued for ever before."""
    assert outlook(SYSTEMS["slurm"], f"sbatch: error: Batch job submission failed: {said}") == "final"
    assert str(what_to_change(SYSTEMS["slurm"], said)).startswith(advice)


def test_a_limit_on_submitted_jobs_may_pass() -> None:
    """Slurm's own words name time limits beside it."""
    said = (
        "sbatch: error: QOSMaxSubmitJobPerUserLimit / Batch job submission failed: Job violates accounting/QOS policy "
    )
    assert outlook(SYSTEMS["slurm"], said + "(job submit limit, user's size and/or time limits)") == "passing"


def test_numbers_of_a_sites_own_wrapper_are_not_taken_for_the_id(tmp_path: Path) -> None:
    """What `sbatch` says counts, and where it says it otherwise (--parsable), the first number."""
    for out, number in (("Checks of login2: 7 passed\nSubmitted batch job 12\n", "12"), ("13;far\n", "13")):
        process = worker(Commands(sbatch=[Ran(0, out, "")]), tmp_path)
        asyncio.run(process.start())
        assert process.allocation_id == number


def test_life_of_an_allocation(tmp_path: Path) -> None:
    """Queued with the reason, running, cancelled and seen to be gone; the record is empty after that."""
    answers = ["12|PENDING|Priority", "12|RUNNING|None", "12|COMPLETING|None", "12|CANCELLED|None"]
    commands = Commands(sbatch=[SUBMITTED], squeue=[Ran(0, text, "") for text in answers], scancel=[Ran(0, "", "")])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        assert process.allocation_id == "12"
        (tmp_path / "logs/snakemake-ab12cd34-main-12.err").write_text("last words\n")
        (tmp_path / "logs/snakemake-ab12cd34-main-123.err").write_text("of another\n")
        state = await process.state()
        assert (state.kind, state.reason) == ("queued", "Priority")
        commands.now += 60.0
        assert (await process.state()).kind == "running"
        assert len(Record(tmp_path).entries()) == 1
        assert await process.kill()
        state = await process.state()
        assert (state.kind, state.log_tail) == ("gone", "last words")

    asyncio.run(check())
    assert ["scancel", "--", "12"] in commands.ran
    assert Record(tmp_path).entries() == []


@pytest.mark.parametrize(
    ("log", "answer", "wanted"),
    [
        ("slurmstepd-c1: error: *** JOB 12 ON c1 CANCELLED AT 2026-11-28T22:33:56 DUE TO PREEMPTION ***", "N/A", True),
        ("slurmstepd-c1: error: *** JOB 12 ON c1 CANCELLED AT 2026-11-28T22:33:56 ***", "N/A", False),
        ("", "2026-11-28T22:34:48", True),
        ("", "CLUSTER: far\n2026-11-28T22:34:48", True),
        ("", "", False),
    ],
)
def test_what_slurm_took_away_for_others(log: str, answer: str, wanted: bool, tmp_path: Path) -> None:
    """By the output's last words, or by the queue, which says so before the output does."""
    commands = Commands(sbatch=[SUBMITTED], squeue=[Ran(0, answer, "")])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        (tmp_path / "logs/snakemake-ab12cd34-main-12.err").write_text(log)
        assert await process.preempted() is wanted

    asyncio.run(check())


def test_the_node_of_an_allocation(tmp_path: Path) -> None:
    """Known also after its end, and only where it is one."""
    answers = ["12|PENDING|Priority|N/A|", "12|RUNNING|None|N/A|c[1-2]", "12|FAILED|NonZeroExitCode|N/A|c-1.x"]
    commands = Commands(sbatch=[SUBMITTED], squeue=[Ran(0, text, "") for text in answers])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        nodes = []
        for _ in answers:
            nodes.append((await process.state()).kind + " " + process.node)
            commands.now += 60.0
        assert nodes == ["queued ", "running ", "gone c-1.x"]

    asyncio.run(check())


def test_nodes_are_left_out_beside_the_users_own() -> None:
    """The last --exclude counts for sbatch. A list in a file stays as it is."""
    backend, place = JobqueueBackend("slurm"), Path("/tmp")

    def excluded(*given: str) -> tuple[list[str], tuple[str, ...]]:
        wanted = pool(left_out=("c1", "c2"), options={"job_extra_directives": list(given)})
        process = backend.worker(wanted, "main-0", link(place))
        lines = directive_lines(backend.job(process.pool, "main-0", link(place), "x", place).job_script())
        return [line.split()[1] for line in lines if "exclude" in line or "-x" in line], process.pool.left_out

    assert excluded() == (["--exclude=c1,c2"], ("c1", "c2"))
    assert excluded("--exclude=n7", "--exclusive")[0][-1] == "--exclude=n7,c1,c2"
    assert excluded("-x n7")[0][-1] == "--exclude=n7,c1,c2"
    assert excluded("--exclude=./list") == (["--exclude=./list"], ())
    assert JobqueueBackend("pbs").worker(pool("pbs", left_out=("c1",)), "main-0", link(place)).pool.left_out == ()


def test_a_refusal_without_some_nodes_is_tried_with_them(tmp_path: Path) -> None:
    """They may be the only ones that hold it; which it was can be seen from the worker's pool."""
    refused = Ran(1, "", "sbatch: error: Batch job submission failed: Requested node configuration is not available")
    commands = Commands(sbatch=[refused, SUBMITTED])

    async def check() -> None:
        process = worker(commands, tmp_path, left_out=("c1",))
        await process.start()
        assert (process.failure, process.allocation_id, process.pool.left_out) == (None, "12", ())

    asyncio.run(check())
    assert ["--exclude=c1" in command for command in commands.ran] == [True, False]
    (entry,) = Record(tmp_path).entries()
    assert entry.id == "12"


def test_allocation_that_can_never_start_is_cancelled(tmp_path: Path) -> None:
    """One that is queued for ever is cancelled, once that is sure, and counts as failed with its reason."""
    stuck = Ran(0, "12|PENDING|PartitionTimeLimit", "")
    commands = Commands(sbatch=[SUBMITTED], squeue=[stuck, stuck, Ran(0, "", "")], scancel=[Ran(0, "", "")])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        assert (await process.state()).kind == "queued"
        assert ["scancel", "--", "12"] not in commands.ran
        commands.now += 60.0
        state = await process.state()
        assert state.kind == "gone"
        assert "(it would never start: PartitionTimeLimit; give the pool a walltime within" in state.reason
        assert process.outlook == "final"

    asyncio.run(check())
    assert ["scancel", "--", "12"] in commands.ran


def test_one_query_serves_all_allocations() -> None:
    """Asked for many at once, the batch system is asked once; an answer from before a submission is not used."""
    commands = Commands(squeue=[Ran(0, "1|RUNNING|None\n2|RUNNING|None", "")])
    now = [100.0]

    async def check() -> None:
        view = QueueView(SYSTEMS["slurm"], None, commands, clock=lambda: now[0])
        view.ids |= {"1", "2"}
        await asyncio.gather(*(view.look(str(1 + i % 2), 10.0, 0.0) for i in range(20)))
        assert len(commands.ran) == 1
        now[0] = 105.0
        await view.look("1", 10.0, 104.0)
        assert len(commands.ran) == 2

    asyncio.run(check())


def test_an_allocation_seen_to_be_gone_can_still_be_asked_for() -> None:
    """By one who waits for an answer while another takes note of its end."""

    async def check() -> None:
        answer = asyncio.Event()

        async def answer_late(_: Sequence[str]) -> Ran:
            await answer.wait()
            return Ran(0, "", "")

        now = iter(range(100, 10_000, 100))
        view = QueueView(SYSTEMS["slurm"], None, answer_late, clock=lambda: next(now))
        others = asyncio.ensure_future(view.look("6", 10.0, 0.0))
        waiting = asyncio.ensure_future(view.look("7", 10.0, 0.0))
        await settle()
        view.ids.discard("7")
        answer.set()
        assert (await others).kind == (await waiting).kind == "gone"

    settling.run(check())


@pytest.mark.parametrize(
    "given", [["--clusters=far"], ["--comment='a b' --clusters far -q long"], ["-Mfar"], ["--cluster=near", "-M far"]]
)
def test_other_cluster_is_asked_and_told(given: list[str]) -> None:
    """With --clusters, also beside other options, the other cluster's queue is asked, and cancelling goes there."""
    wanted, backend = pool(options={"job_extra_directives": given}), JobqueueBackend("slurm")
    assert backend.where(wanted) == "far"
    assert backend.cancel_command(wanted, "7") == ["scancel", "--clusters=far", "--", "7"]
    assert "--clusters=far" in SYSTEMS["slurm"].query(["7"], "me", "far")
    with dask.config.set({"jobqueue.slurm.job-extra-directives": given}):
        assert backend.where(pool()) == "far"
    assert backend.where(pool(options={"job_extra_directives": ["--comment=--clusters=far"]})) is None


def test_walltime_of_the_site_is_what_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is packaged with Dask-Jobqueue is nobody's."""
    backend, unset = JobqueueBackend("slurm"), Pool("p", "slurm")
    monkeypatch.setattr(dask.config, "paths", [])
    with dask.config.set({"jobqueue": _defaults()}):
        assert backend.with_site_walltime(unset).walltime_s is None
        monkeypatch.setenv("DASK_JOBQUEUE__SLURM__WALLTIME", "02:00:00")
        with dask.config.set({"jobqueue.slurm.walltime": "02:00:00"}):
            assert backend.with_site_walltime(unset).walltime_s == 7200.0
            assert backend.with_site_walltime(replace(unset, walltime_s=60.0)).walltime_s == 60.0
        with (
            dask.config.set({"jobqueue.slurm.walltime": "forever"}),
            pytest.raises(ConfigurationError, match=r"DASK_JOBQUEUE__SLURM__WALLTIME.*'forever'.*not a walltime"),
        ):
            backend.with_site_walltime(unset)


def test_limits_of_partitions_are_read() -> None:
    """With a partition's name those that are listed, without one the default."""
    listed = "CLUSTER: far\nmain*|1-00:00:00\nfast|30:00\nlong|infinite\n"
    assert SYSTEMS["slurm"].parse_limits(listed, True) == {"main": 86400.0, "fast": 1800.0, "long": None}
    assert SYSTEMS["slurm"].parse_limits(listed, False) == {"main": 86400.0}


def test_cancel_arguments_of_the_class_are_used() -> None:
    """HTCondor's further arguments for cancelling reach the command."""
    wanted = replace(pool("htcondor"), options={"disk": "1 GB", "cancel_command_extra": ["-name", "schedd1"]})
    assert JobqueueBackend("htcondor").cancel_command(wanted, "7.0") == ["condor_rm", "-name", "schedd1", "7.0"]


def test_submission_from_inside_an_allocation() -> None:
    """The variables of Snakemake's own allocation are not handed on, those that choose the cluster are."""
    inside = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "1", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "HOME": "/h"}
    assert outside_allocation(inside) == {"SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "HOME": "/h"}
    outside = {"SLURM_MEM_PER_CPU": "1"}
    assert outside_allocation(outside) == outside


def test_log_tail_is_bounded(tmp_path: Path) -> None:
    """At most 20 lines of the allocation's own files."""
    (tmp_path / "x-7.out").write_text("\n".join(map(str, range(1000))))
    assert log_tail(tmp_path, "7").splitlines() == [str(i) for i in range(980, 1000)]
    assert log_tail(tmp_path / "none", "7") == ""


# What must not reach a batch script, and where its output goes


@pytest.mark.parametrize("cluster", ["slurm", "pbs", "lsf", "sge", "oar", "moab"])
@pytest.mark.parametrize("key", ["queue", "project", "account", "job_extra_directives", "resource_spec"])
def test_no_option_begins_a_line_of_its_own(cluster: str, key: str) -> None:
    """A line break in a value would be shell code in the batch script."""
    backend = JobqueueBackend(cluster)
    if key not in backend.options():
        pytest.skip(f"{cluster} has no {key}")
    value = "fine\ntouch HACKED"
    wanted = pool(cluster, options={key: [value] if key == "job_extra_directives" else value})
    with pytest.raises(ConfigurationError, match=f"{key} holds a line break"):
        backend.describe(wanted)


def test_no_key_of_htcondor_begins_a_line_of_its_own() -> None:
    """Neither a name nor a value of a line in its submit file."""
    for extra in ({"request_gpus": "1\nexecutable = /bin/evil"}, {"a\nqueue": 1}):
        with pytest.raises(ConfigurationError, match="line break"):
            JobqueueBackend("htcondor").describe(pool("htcondor", options={"job_extra_directives": extra}))


@pytest.mark.parametrize(
    ("cluster", "extra", "found"),
    [
        ("slurm", "-o logs/%j.out", "-o"), ("slurm", "--qos=x --out=a", "--out"), ("slurm", "-elogs", "-elogs"),
        ("slurm", "--array=1-3", "--array"), ("slurm", "-W", "-W"), ("slurm", "--parsable", "--parsable"),
        ("slurm", "--chdir=/tmp", "--chdir"), ("slurm", "--job-name x", "--job-name"),
        ("slurm", "--mail-user=me --exclusive --wait-all-nodes=1 -t 5 --overcommit -O", None),
        ("pbs", "-o /tmp", "-o"), ("pbs", "-l place=excl", None), ("pbs", "-J 1-3", "-J"), ("moab", "-t 1-3", "-t"),
        ("lsf", "-oo out", "-oo"), ("lsf", "-R 'rusage[mem=1]' -env all -ep x", None), ("lsf", "-K", "-K"),
        ("sge", "-t 1-3", "-t"), ("sge", "-terse", "-terse"), ("sge", "-pe smp 2 -j y -ot 1", None),
        ("oar", "--stdout=a", "--stdout"), ("oar", "-t besteffort", None),
        ("htcondor", {"Output": "a"}, "Output"), ("htcondor", {"request_gpus": 1}, None),
    ],
)  # fmt: skip
def test_directives_that_are_the_plugins_own(cluster: str, extra: Any, found: str | None) -> None:
    """Where output goes, names, arrays, and what changes the answer of the submit command."""
    assert directives.owned(SYSTEMS[cluster], extra) == found


def refused(wanted: Pool) -> str:
    backend = JobqueueBackend(wanted.cluster)
    backend.check_options(wanted)
    with pytest.raises(ConfigurationError) as caught:
        backend.check_output(wanted)
    return str(caught.value)


def test_output_that_could_not_be_written_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own directives for it, a directory that cannot be written, and paths that batch systems read as patterns."""
    own = pool(options={"job_extra_directives": ["-o logs/%j.out"]})
    assert "-o in job_extra_directives is reserved for the plugin" in refused(own)
    nowhere = pool(options={"log_directory": "/dev/null/logs"})
    assert "nothing can be created in /dev/null" in refused(nowhere)
    assert "holds '%', which sbatch" in refused(pool(options={"log_directory": f"{tmp_path}/%u"}))
    for cluster in ("slurm", "pbs", "lsf", "sge", "oar", "moab", "htcondor"):
        for name in ("%j", "back\\slash", "$USER"):
            (tmp_path / name).mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / name)
            assert "run the workflow in another directory (--directory), or name" in refused(pool(cluster))


def test_a_relative_log_directory_is_where_snakemake_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a directory for the run alone in it, which others cannot enter."""
    monkeypatch.chdir(tmp_path)
    backend = JobqueueBackend("slurm")
    wanted = backend.complete(pool(options={"log_directory": "logs"}))
    (tmp_path / "state").mkdir()
    monkeypatch.chdir("/")
    job, script = backend.write(wanted, "main-0", link(tmp_path / "state"))
    place = tmp_path / "logs" / "snakemake-ab12cd34"
    assert f"#SBATCH -o {place}/snakemake-ab12cd34-main-%J.out" in script.read_text()
    assert place.stat().st_mode & 0o777 == 0o700
    assert job.submit_directory == os.fspath(place)
    assert script.stat().st_mode & 0o777 == 0o600


# What is asked, and what is believed


def test_users_own_variables_for_the_commands_are_left_out() -> None:
    """SQUEUE_PARTITION hides allocations, SCANCEL_STATE cancels none, SBATCH_ARRAY_INX makes many.

    With BSUB_QUIET LSF does not tell the id, with BSUB_CHK_RESREQ it submits nothing; PBS_DPREFIX hides the directives.
    """
    theirs = dict.fromkeys(
        ("SQUEUE_PARTITION", "SQUEUE_ACCOUNT", "SCANCEL_STATE", "SBATCH_ARRAY_INX", "LSB_BJOBS_FORMAT", "BSUB_QUIET",
         "BSUB_STDERR", "BSUB_CHK_RESREQ", "PBS_DPREFIX", "PBS_QSTAT_EXECONLY"), "x",
    )  # fmt: skip
    ours = {"PATH": "/bin", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a"}
    assert outside_allocation(theirs | ours) == ours
    assert "--all" in SYSTEMS["slurm"].query(["1"], "me", None)


def test_not_listed_is_not_believed_at_once() -> None:
    """It is asked for by its id; only what Slurm does not know by it is gone."""

    async def seen(*answers: Ran) -> tuple[str, int]:
        commands = Commands(squeue=list(answers))
        view = QueueView(SYSTEMS["slurm"], None, commands, clock=lambda: 100.0)
        return (await view.look("7", 10.0, 0.0)).kind, len(commands.ran)

    empty, unknown = Ran(0, "", ""), Ran(1, "", "slurm_load_jobs error: Invalid job id specified")
    assert asyncio.run(seen(Ran(0, "7|RUNNING|None", ""))) == ("running", 1)
    assert asyncio.run(seen(empty, Ran(0, "7|PENDING|Priority", ""))) == ("queued", 2)
    assert asyncio.run(seen(empty, unknown)) == ("gone", 2)
    assert asyncio.run(seen(empty, empty)) == ("gone", 2)
    assert asyncio.run(seen(empty, Ran(1, "", "Unable to contact slurm controller"))) == ("unknown", 2)


def test_a_submission_without_an_answer_is_looked_for(tmp_path: Path) -> None:
    """After "Socket timed out" the allocation may be queued all the same: it is found by its script, and used."""
    script = tmp_path / "workers" / "main-0.sh"
    lost = Ran(1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    queue = Ran(0, f"11|/elsewhere/workers/main-0.sh\n12|{script}\n", "")
    commands = Commands(sbatch=[lost], squeue=[Ran(1, "", "Socket timed out"), queue])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        assert (process.failure, process.allocation_id) == (None, "12")

    asyncio.run(check())
    (entry,) = Record(tmp_path).entries()
    assert entry.id == "12"


@pytest.mark.parametrize("code", [1, 124])
def test_a_submission_that_is_not_found_stays_recorded(code: int, tmp_path: Path) -> None:
    """It may appear later: it is cancelled by its name at the end."""
    commands = Commands(sbatch=[Ran(code, "", "Socket timed out on send/recv")], squeue=[Ran(0, "", "")])

    async def check() -> None:
        process = worker(commands, tmp_path)
        await process.start()
        assert "Socket timed out" in process.failure
        assert process.outlook == "passing"

    asyncio.run(check())
    assert [entry.name for entry in Record(tmp_path).entries()] == ["snakemake-ab12cd34-main"]
    assert [entry.id for entry in Record(tmp_path).entries()] == [None]


@pytest.mark.parametrize("number", ["-u", "0", "7 8", "all", "*"])
def test_an_id_that_is_none_is_not_taken(number: str) -> None:
    """Whatever a site's wrapper of the submit command printed."""
    with pytest.raises(ValueError, match="as the allocation's id, which is not a valid one"):
        JobqueueBackend("lsf").checked_id(number)


def test_a_launch_failure_without_output_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm says no more than that the launch failed where it could not open the output file."""
    failed = Ran(0, "12|FAILED|JobLaunchFailure", "")

    async def check() -> None:
        process = worker(Commands(sbatch=[SUBMITTED], squeue=[failed]), tmp_path)
        await process.start()
        state = await process.state()
        assert "wrote nothing: its output file in" in state.reason
        assert "could probably not be opened" in state.reason

    asyncio.run(check())
