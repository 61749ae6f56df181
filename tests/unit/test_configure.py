"""From settings to options: defaults, warnings, and every complaint before anything starts."""

import json
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.config.configure import configure, configure_here
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kinds import ATTACHED
from snakemake_executor_plugin_dask.model.options import DashboardAddress, Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.machine import Machine, this_machine
from snakemake_executor_plugin_dask.settings import ExecutorSettings

MACHINE = Machine(cores=8, memory_mb=16_000, interfaces=("lo", "eth0", "ib0"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are meant from a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


def options(
    *warnings: str, machine: Machine = MACHINE, environment: dict[str, str] | None = None, **given: object
) -> Options:
    """The options, after looking for a part of each expected warning, in order."""
    result, found = configure(ExecutorSettings(**given), environment or {}, machine)
    assert len(found) == len(warnings), found
    for text, part in zip(found, warnings, strict=True):
        assert part in text
    return result


def pool(*warnings: str, environment: dict[str, str] | None = None, **given: object) -> Pool:
    (only,) = options(*warnings, environment=environment, **given).pools
    return only


def complaint(machine: Machine = MACHINE, **given: object) -> str:
    """The one complaint; nothing may be left behind by looking."""
    before = sorted(os.listdir())
    with pytest.raises(ConfigurationError) as raised:
        configure(ExecutorSettings(**given), {}, machine)
    assert sorted(os.listdir()) == before
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_nothing_set() -> None:
    """With nothing set there is one worker with this machine's cores and memory."""
    result = options()
    assert result.pools == (Pool("local", "local", 1, 1, 8, 16_000),)
    assert result.local_by_default
    assert not result.make_slurm_pools
    assert (result.job_start, result.enforce_runtime, result.enforce_memory) == ("warm", True, True)
    assert (result.lost_worker_retries, result.dashboard, result.report, result.plan) == (3, None, None, False)
    assert result.logdir == os.path.abspath(".snakemake/dask_logs")
    assert not os.listdir()


def test_scheduler_address_of_dask_alone_does_not_attach() -> None:
    """`DASK_SCHEDULER_ADDRESS` is for Dask's own clients."""
    assert options(environment={"DASK_SCHEDULER_ADDRESS": "tcp://a:1"}).scheduler is None


def test_this_process() -> None:
    """The executor's own call looks at the real machine."""
    result, _ = configure_here(ExecutorSettings())
    assert result.pools[0].cores == this_machine().cores


def test_local_is_named() -> None:
    """`--dask-cluster local` is not the same as nothing: jobs with Slurm resources then run here."""
    assert not options(cluster="local").local_by_default


def test_machine_is_divided() -> None:
    """Several workers share the machine, an elastic pool by its greatest number."""
    assert pool(workers="3") == Pool("local", "local", 3, 3, 2, 5333)
    assert pool(workers="0-4") == Pool("local", "local", 0, 4, 2, 4000)
    assert pool(cluster="cuda", workers=2) == Pool("cuda", "cuda", 2, 2, 4, 8000)


def test_more_cores_together_than_the_machine_has() -> None:
    """Cores of all workers, or of one, may exceed the machine's, with one warning."""
    assert pool(
        "A worker is to have 9 cores, but this machine has 8 cores for this process (as affinity and cgroup limit it): "
        "jobs share them.",
        worker_cores=9,
    ) == Pool("local", "local", 1, 1, 9, 16000)
    assert pool("A worker is to have 9 cores", cluster="cuda", worker_cores=9, workers=2).cores == 9
    assert pool("6 workers on this machine have 18 cores together, but this machine has 8", workers=6, worker_cores=3)
    assert pool("have 9 cores together", workers=9).cores == 1


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"worker_memory": "17 GB"}, ("to have 17000 MB", "has 16000 MB")),
        ({"workers": 3, "worker_memory": "6 GB"}, ("3 workers", "18000 MB", "has 16000 MB", "at most 5333 MB")),
        ({"workers": "0-3", "worker_memory": "6 GB"}, ("18000 MB",)),
    ],
)  # fmt: skip
def test_larger_than_the_machine(given: dict[str, object], parts: tuple[str, ...]) -> None:
    """One worker's memory may not exceed the machine, nor may memory together."""
    message = complaint(**given)
    for part in parts:
        assert part in message


def test_batch_defaults() -> None:
    """A batch system's pool leaves its sizes to the backend; only Slurm's makes pools for Slurm resources."""
    result = options(cluster="slurm")
    assert result.pools == (Pool("slurm", "slurm", 0, 10),)
    assert result.make_slurm_pools
    assert not result.local_by_default
    result = options(
        cluster="pbs", workers="2", worker_cores="4", worker_memory="8 GB", walltime="2h", idle_timeout="5"
    )
    assert result.pools == (Pool("pbs", "pbs", 2, 2, 4, 8000, walltime_s=7200, idle_timeout_s=5),)
    assert not result.make_slurm_pools


def test_mpi_defaults() -> None:
    """An MPI pool has one worker for each node that the allocation holds."""
    assert pool(cluster="mpi") == Pool("mpi", "mpi", 1, 1)
    assert pool(cluster="mpi", environment={"SLURM_JOB_NUM_NODES": "3"}) == Pool("mpi", "mpi", 3, 3)
    launcher = '{launcher: "mpirun --map-by ppr:1:node"}'
    assert pool(cluster="mpi", workers=2, options=launcher).options == {"launcher": "mpirun --map-by ppr:1:node"}
    assert "give one number" in complaint(cluster="mpi", workers="0-3")


@pytest.mark.parametrize("cluster", [None, "local", "cuda", "mpi"])
def test_walltime_without_a_batch_system(cluster: str | None) -> None:
    """A site's profile may set a walltime; where it means nothing it is ignored with a warning."""
    assert pool("--dask-walltime is ignored", cluster=cluster, walltime="2h").walltime_s is None


def test_local_takes_no_options() -> None:
    """Options are for a backend's class, and the local pool has none."""
    assert "no options" in complaint(options="{queue: long}")


def test_scheduler_options_of_dask_jobqueue() -> None:
    """Where the scheduler listens can be said as dask-jobqueue says it."""
    result = options(cluster="lsf", options="{interface: ib0, scheduler_options: {interface: eth0, port: 8786}}")
    assert (result.scheduler_interface, result.scheduler_port) == ("eth0", 8786)
    assert result.pools[0].options == {"interface": "ib0"}


def test_interface_that_this_host_lacks() -> None:
    """The scheduler's interface must be one of this host's."""
    message = complaint(cluster="lsf", options="{scheduler_options: {interface: ib1}}")
    assert "ib1" in message
    assert "lo, eth0, ib0 (did you mean `ib0`?)" in message


def test_pools_file_wins() -> None:
    """A pools file wins over the shape settings, and says which ones it makes pointless."""
    Path("pools.yaml").write_text(
        "scheduler: {host: 10.0.0.1}\n"
        "pools:\n  a: {cluster: local, cores: 2, memory: 4 GB}\n  b: {cluster: slurm, cores: 4}\n"
    )
    result = options(
        "--dask-pools is given, so --dask-cluster, --dask-workers, --dask-walltime are ignored",
        pools="pools.yaml",
        cluster="slurm",
        workers="3",
        walltime="2h",
        idle_timeout=7,
    )
    assert [(each.name, each.cores, each.idle_timeout_s) for each in result.pools] == [("a", 2, 7.0), ("b", 4, 7.0)]
    assert result.scheduler_host == "10.0.0.1"
    assert not result.make_slurm_pools
    assert not result.local_by_default


def test_a_profiles_pools_file_can_be_undone() -> None:
    """`--dask-pools none` on the command line: the shape settings count again, and a file of that name is not read."""
    Path("none").write_text("pools:\n  a: {cluster: local}\n")
    assert pool(pools="none", cluster="pbs", workers="2") == Pool("pbs", "pbs", 2, 2)


def test_local_pools_of_a_file_share_the_machine() -> None:
    """Pools on this machine without sizes share it; a worker with more memory is refused, by name."""
    Path("pools.yaml").write_text("pools:\n  a: {cluster: local}\n  b: {cluster: local, workers: 3}\n")
    assert [(each.cores, each.memory_mb) for each in options(pools="pools.yaml").pools] == [(2, 4000), (2, 4000)]
    Path("pools.yaml").write_text("pools:\n  a: {cluster: local, memory: 17 GB}\n  b: {cluster: slurm, cores: 99}\n")
    assert "A worker of pool a is to have 17000 MB" in complaint(pools="pools.yaml")


def test_attach() -> None:
    """A scheduler is attached to by its address or its file; sizes then come from its workers."""
    result = options(scheduler="tcp://node1:8786")
    assert (result.scheduler, result.pools) == ("tcp://node1:8786", (Pool(ATTACHED, ATTACHED),))
    Path("scheduler.json").write_text(json.dumps({"address": "tls://10.0.0.1:1"}))
    assert options(scheduler="scheduler.json").scheduler == os.path.abspath("scheduler.json")
    options("so --dask-workers, --dask-worker-gpus are ignored", scheduler="tls://a:1", workers=2, worker_gpus=1)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("localhost:8786", "write tcp://localhost:8786"),
        ("ucx://a:1", "tcp://host:8786"),
        ("tcp://a", "tcp://host:8786"),
        ("missing.json", "No such file"),
        ("text", "scheduler file"),
        ("other.json", "names no `address`"),
        (".", "Is a directory"),
    ],
)
def test_attach_refused(value: str, part: str) -> None:
    """What is neither an address nor a scheduler file is refused."""
    Path("text").write_text("hello")
    Path("other.json").write_text('{"a": 1}')
    assert part in complaint(scheduler=value)


@pytest.mark.parametrize("given", [{"cluster": "slurm"}, {"pools": "pools.yaml"}])
def test_attach_contradicts(given: dict[str, str]) -> None:
    """To attach and to bring workers up exclude each other."""
    assert "remove one of the two" in complaint(scheduler="tcp://a:1", **given)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"cluster": "slrum"}, ("--dask-cluster", "did you mean `slurm`")),
        ({"cluster": ""}, ("--dask-cluster is ''", "local, cuda, mpi")),
        ({"workers": "-1"}, ("--dask-workers is '-1'",)),
        ({"workers": "0"}, ("--dask-workers is '0'", "1 or more")),
        ({"workers": "99999999"}, ("99999999 workers", "less than 1 MB", "ask for fewer")),
        ({"workers": "1:5"}, ("--dask-workers is '1:5'", "0-10")),
        ({"worker_cores": "-2"}, ("--dask-worker-cores is '-2'", "1 or more")),
        ({"worker_cores": "2.5"}, ("--dask-worker-cores is '2.5'",)),
        ({"worker_memory": "16"}, ("--dask-worker-memory is '16'", "no unit")),
        ({"worker_memory": "-4 GB"}, ("--dask-worker-memory is '-4 GB'", "not a size")),
        ({"worker_gpus": "-1"}, ("--dask-worker-gpus is '-1'",)),
        ({"cluster": "slurm", "walltime": "43200"}, ("--dask-walltime is '43200'", "12:00:00")),
        ({"walltime": "soon"}, ("--dask-walltime is 'soon'",)),
        ({"idle_timeout": "x"}, ("--dask-idle-timeout is 'x'", "write a number of seconds, or a duration with a unit")),
        ({"idle_timeout": "1:00"}, ("--dask-idle-timeout is '1:00'", "write a number of seconds")),
        ({"idle_timeout": "-1"}, ("--dask-idle-timeout is '-1'", "0 or more")),
        ({"lost_worker_retries": "-1"}, ("--dask-lost-worker-retries is '-1'", "0 or more")),
        ({"job_start": "wram"}, ("--dask-job-start is 'wram'", "did you mean `warm`")),
        ({"enforce": "runtime,mem"}, ("--dask-enforce is 'runtime,mem'", "none")),
        ({"enforce": "none,memory"}, ("--dask-enforce", "none alone")),
        ({"enforce": ""}, ("--dask-enforce is ''",)),
        ({"dashboard": "on"}, ("--dask-dashboard is 'on', which is not an address; write auto",)),
        ({"dashboard": "a:99999"}, ("--dask-dashboard is 'a:99999'",)),
        ({"dashboard": "a b:80"}, ("--dask-dashboard is 'a b:80'",)),
        ({"pools": "missing.yaml"}, ("--dask-pools: 'missing.yaml'", "No such file")),
        ({"cluster": "slurm", "options": "queue"}, ("--dask-options: 'queue'", "neither a file nor a mapping")),
        ({"report": "report.pdf"}, ("--dask-report is 'report.pdf'", ".html, .tsv or .json")),
    ],
)  # fmt: skip
def test_values_refused(given: dict[str, object], parts: tuple[str, ...]) -> None:
    """Each complaint names the setting, what was found, and what is allowed."""
    message = complaint(**given)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "enforced"),
    [
        ("runtime,memory", (True, True, False)),
        ("memory", (False, True, False)),
        (" runtime ", (True, False, False)),
        ("runtime,cgroup", (True, True, True)),
        ("none", (False, False, False)),
    ],
)
def test_enforce(text: str, enforced: tuple[bool, bool, bool]) -> None:
    """Limits are named one by one, or none of them."""
    result = options(enforce=text)
    assert (result.enforce_runtime, result.enforce_memory, result.enforce_cgroup) == enforced


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("auto", ("127.0.0.1", 0)),
        ("8787", ("127.0.0.1", 8787)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_dashboard(text: str, address: tuple[str, int]) -> None:
    """An address has a port; one without a host is on loopback."""
    assert options(dashboard=text).dashboard == DashboardAddress(*address)


@pytest.mark.parametrize("where", ["file/logs", "file", "/proc/logs", "x" * 300])
def test_log_directory_that_cannot_be_written(where: str) -> None:
    """A log directory below a file, or where even root cannot write, is refused."""
    Path("file").write_text("")
    told = complaint(logdir=where)
    assert "--dask-logdir" in told
    assert "No such file" not in told, "what is named is there"


@pytest.mark.parametrize("where", ["file/a.html", "/proc/a.html", "directory.html", "x" * 300 + ".html"])
def test_report_that_cannot_be_written(where: str) -> None:
    """A report below a file, in place of a directory, or where even root cannot write, is refused."""
    Path("file").write_text("")
    Path("directory.html").mkdir()
    assert "--dask-report" in complaint(report=where)


def test_paths_are_absolute() -> None:
    """Paths are meant from where Snakemake works, and kept for processes that work elsewhere; nothing is made."""
    result = options(logdir="a/b", report="new/report.TSV")
    assert (result.logdir, result.report) == (os.path.abspath("a/b"), os.path.abspath("new/report.TSV"))
    assert not os.listdir()


def test_flags() -> None:
    """Flags and numbers arrive."""
    result = options(plan=True, keep_successful_logs=True, lost_worker_retries="0", job_start="cold")
    assert (result.plan, result.keep_successful_logs, result.lost_worker_retries, result.job_start) == (
        True,
        True,
        0,
        "cold",
    )
