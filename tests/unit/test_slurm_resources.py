"""Pools made for Slurm resources: how jobs share them, their size, their walltime, and what is submitted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.backends.slurm_pools import granting, make_pools
from snakemake_executor_plugin_dask.batch.allocations import Ran
from snakemake_executor_plugin_dask.batch.sinfo import parse_sinfo
from snakemake_executor_plugin_dask.decide import routing
from snakemake_executor_plugin_dask.frontend.preflight import Question, answer
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool, usable_memory_mb
from snakemake_executor_plugin_dask.model.requests import Request, request_from_resources

SINFO = {
    None: "cpu*|1-00:00:00|01:00:00|48|192000|(null)|intel|20\n",
    "cpu": "cpu*|1-00:00:00|01:00:00|48|192000|(null)|intel|20\n",
    "boost": "boost|08:00:00|n/a|32|512000|gpu:a100:4(S:0-1)|gpu,a100|4\n",
    "mixed": "mixed|infinite|infinite|16|64000|(null)|old|2\nmixed|infinite|infinite|64|256000|(null)|new,ib|2\n",
    "open": "open|infinite|n/a|8|1|(null)|(null)|2\n",
}
TEMPLATE = Pool("slurm", "slurm", 0, 10)


def sinfo(command: Sequence[str]) -> Ran:
    if "--format=%R" in command:
        return Ran(0, "\n".join(name for name in SINFO if name), "")
    partition = next((word.partition("=")[2] for word in command if word.startswith("--partition=")), None)
    return Ran(0, SINFO.get(partition, ""), "")


def make(
    *resources: dict[str, Any], template: Pool = TEMPLATE, further: bool = False, **configuration: Any
) -> list[Pool]:
    """Each job's rule is called as `rule` says, else r1, r2 and so on."""
    named = [
        (given.get("rule", f"r{number}"), request_from_resources(given, given.get("threads", 1)))
        for number, given in enumerate(resources, 1)
    ]
    setting = lambda key: template.options.get(key, configuration.get(key))  # noqa: E731
    return make_pools(template, named, setting=setting, run=sinfo, further=further)


def test_dask_workers_of_a_job_lie_on_several_workers() -> None:
    """A worker is made for as many of them as a node holds."""
    (pool,) = make({"slurm_partition": "cpu", "threads": 8, "mem_mb": 1000, "dask_workers": 12})
    assert pool.cores == 41
    (request,) = (request_from_resources({"dask_workers": 12, "mem_mb": 1000}, 8),)
    assert not routing.shortages(replace(request, slurm=pool.slurm), pool, routing.shape_of(pool))


def test_jobs_that_agree_share_a_pool() -> None:
    """Partition, account and the like make a pool; cores, memory and GPUs do not."""
    pools = make(
        {"slurm_partition": "cpu", "mem_mb": 100},
        {"slurm_partition": "cpu", "threads": 4},
        {"slurm_partition": "cpu", "nodes": 1},
        {"slurm_partition": "cpu", "slurm_account": "a"},
        {"slurm_partition": "boost", "gres": "gpu:2"},
        {"slurm_partition": "boost", "gres": "gpu:1"},
        {"slurm_partition": "boost"},
        {},
    )
    assert [pool.name for pool in pools] == ["cpu", "cpu-2", "boost", "slurm"]
    assert [dict(pool.slurm or ()) for pool in pools] == [
        {"slurm_partition": "cpu"},
        {"slurm_partition": "cpu", "slurm_account": "a"},
        {"slurm_partition": "boost"},
        {},
    ]


def test_every_request_fits_its_pool() -> None:
    """What the pools are made from is routed to them."""
    resources: list[dict[str, Any]] = [
        {"slurm_partition": "cpu", "mem_mb": 190000, "runtime": 60},
        {"slurm_partition": "boost", "gres": "gpu:a100:3", "mem_mb_per_cpu": 4000, "threads": 8, "runtime": 479},
        {"slurm_partition": "mixed", "constraint": "new", "threads": 40},
        {"slurm_partition": "cpu", "nodes": 4, "tasks": 96, "mpi": "srun"},
        {},
    ]
    pools = make(*resources)
    shapes = {pool.name: routing.shape_of(pool) for pool in pools}
    for given_ in resources:
        request = request_from_resources(given_, given_.get("threads", 1))
        chosen = routing.route(request, pools, shapes)
        assert next(pool for pool in pools if pool.name == chosen).slurm == (request.slurm or ())


def test_size_by_the_known_jobs() -> None:
    """A few small jobs need a small share of a node, thousands need whole nodes, one alone its own size."""
    (one,) = make({"slurm_partition": "cpu", "threads": 2, "mem_mb": 2000})
    assert one.cores == 2
    (few,) = make(*[{"slurm_partition": "cpu", "mem_mb": 2000}] * 8)
    assert few.cores == 4
    (many,) = make(*[{"slurm_partition": "cpu", "mem_mb": 2000}] * 5000)
    assert (many.cores, many.memory_mb) == (48, 192000 * 2**20 // 10**6)


def test_memory_comes_in_proportion() -> None:
    """A job that needs half of the memory gets half of the cores; none is asked for beyond the node."""
    (pool,) = make({"slurm_partition": "cpu", "mem_mb": 100_000})
    assert pool.cores == 24
    assert usable_memory_mb(pool.memory_mb or 0) >= 100_000
    assert pool.options["job_mem"] == "96000M"


def test_gpus_come_in_multiples_of_the_largest_job() -> None:
    """Four GPUs on a node: jobs of two get two or four, jobs of three get three; cores and memory in proportion."""
    (pool,) = make({"slurm_partition": "boost", "gres": "gpu:2"})
    assert (pool.gpus, pool.cores) == (2, 16)
    (pool,) = make(*[{"slurm_partition": "boost", "gres": "gpu:2"}] * 40)
    assert (pool.gpus, pool.cores) == (4, 32)
    (pool,) = make(*[{"slurm_partition": "boost", "gpu": 3}] * 40)
    assert (pool.gpus, pool.cores) == (3, 24)


def test_gpus_are_asked_for_with_their_model() -> None:
    """The model that jobs name goes into --gres, beside what else gres asks for."""
    (pool,) = make({"slurm_partition": "boost", "gres": "gpu:a100:2,nvme:1"})
    assert pool.gpu_model == "a100"
    assert "--gres=nvme:1,gpu:a100:2" in pool.options["job_extra_directives"]


def test_models_that_differ_need_pools_of_their_own() -> None:
    """One worker has GPUs of one model."""
    partition = {"slurm_partition": "two"}
    sinfo_of_two = Ran(0, "two|infinite|n/a|8|64000|gpu:a100:4|x|1\ntwo|infinite|n/a|8|64000|gpu:v100:2|y|1\n", "")
    named = [(model, request_from_resources({**partition, "gres": f"gpu:{model}:1"}, 1)) for model in ("a100", "v100")]
    pools = make_pools(TEMPLATE, named, setting=lambda _: None, run=lambda _: sinfo_of_two)
    assert [(pool.name, pool.gpu_model) for pool in pools] == [("two-a100", "a100"), ("two-v100", "v100")]


def test_constraint_chooses_the_nodes() -> None:
    """The size is that of nodes with the feature."""
    (pool,) = make(*[{"slurm_partition": "mixed", "constraint": "new&ib"}] * 5000)
    assert pool.cores == 64
    assert "--constraint=new&ib" in pool.options["job_extra_directives"]
    fast = {"slurm_partition": "mixed", "constraint": "fast"}
    with pytest.raises(
        ConfigurationError,
        match=r"^Rules Quick, b: no node of partition mixed has fast \(they have ib, new, old\); change constraint",
    ):
        make({"rule": "Quick", **fast}, {"rule": "b", **fast})


def test_an_mpi_job_gets_as_many_nodes_as_its_tasks_need() -> None:
    """As if `nodes` had been declared: whole tasks on each, and a pool for each number of nodes."""
    ranks = [{"slurm_partition": "open", "mpi": "srun", "tasks": tasks, "cpus_per_task": 3} for tasks in (2, 3, 4)]
    pools = make(*ranks)
    assert [(pool.name, pool.nodes, pool.cores) for pool in pools] == [("open", None, 6), ("open-2nodes", 2, 6)]
    shapes = {pool.name: routing.shape_of(pool) for pool in pools}
    requests = [request_from_resources(each, 1) for each in ranks]
    assert [routing.route(request, pools[::-1], shapes) for request in requests] == ["open", *["open-2nodes"] * 2]
    with pytest.raises(
        ConfigurationError, match=r"15 cores, MPI, for which 3 nodes are needed: partition open has 2 nodes"
    ):
        make({**ranks[0], "tasks": 5})
    with pytest.raises(ConfigurationError, match=r"tasks_per_node without nodes is one node; with tasks instead"):
        make({"slurm_partition": "open", "mpi": "srun", "tasks_per_node": 9})
    with pytest.raises(ConfigurationError, match=r"r1:nodes=3, or .*r1:tasks=96"):
        make({"slurm_partition": "cpu", "nodes": 2, "tasks": 100})
    template = replace(TEMPLATE, cores=4, memory_mb=8000)
    (pool,) = make({**ranks[0], "tasks": 3}, template=template)
    assert (pool.nodes, pool.cores) == (3, 4)


def test_settings_win_over_the_partition() -> None:
    """--dask-worker-* and then jobqueue.slurm say the size."""
    template = Pool("slurm", "slurm", 0, 10, cores=4, memory_mb=8000, walltime_s=600.0)
    (pool,) = make({"slurm_partition": "cpu"}, template=template)
    assert (pool.cores, pool.memory_mb, pool.walltime_s) == (4, 8000, 600.0)
    assert "job_mem" not in pool.options
    (pool,) = make({"slurm_partition": "cpu"}, cores=6, memory="9 GB")
    assert (pool.cores, pool.memory_mb) == (6, 9000)


def test_walltime() -> None:
    """The longest runtime and its margin, an hour at least, and at most the partition's limit."""
    (pool,) = make({"slurm_partition": "cpu", "runtime": 300})
    assert pool.walltime_s == 305 * 60
    assert (pool.walltime_s or 0) - pool.effective_margin_s >= 300 * 60
    (pool,) = make({"slurm_partition": "cpu", "runtime": 1})
    assert pool.walltime_s == 3600
    (pool,) = make({"slurm_partition": "boost", "runtime": 479})
    assert pool.walltime_s == 8 * 3600
    (pool,) = make({"slurm_partition": "cpu"})
    assert pool.walltime_s == 3900  # the partition's default time, and the margin


def test_options_of_the_user_stay() -> None:
    """What --dask-options say goes along, and the rules' resources are added."""
    template = Pool("slurm", "slurm", 0, 10, options={"account": "mine", "job_extra_directives": ["--mail-type=FAIL"]})
    pool, other = make(
        {"slurm_partition": "cpu", "qos": "long", "slurm_extra": "'--reservation=r --exclusive'"},
        {"slurm_account": "theirs"},
        template=template,
    )
    assert pool.options["account"] == "mine"
    assert pool.options["queue"] == "cpu"
    assert pool.options["job_extra_directives"] == ["--mail-type=FAIL", "--qos=long", "--reservation=r --exclusive"]
    assert other.options["account"] == "theirs"


def test_nodes_that_are_too_small() -> None:
    """A job that no node of the partition holds is named before anything is submitted."""
    with pytest.raises(ConfigurationError) as told:
        make(
            {"rule": "Wide", "slurm_partition": "cpu", "threads": 96, "mem_mb": 300_000},
            {"rule": "fits", "slurm_partition": "cpu", "threads": 48},
        )
    assert str(told.value) == (
        "Rule Wide asks for 96 cores, mem_mb=300000, which no node of partition cpu holds; the largest has 48 cores, "
        "201026 MB usable.\n"
        "  To make it fit: --set-resources Wide:mem_mb=201026 --set-threads Wide=48; or name another slurm_partition."
    )
    with pytest.raises(ConfigurationError, match=r"the largest has 32 cores, 536\d+ MB usable, 4 GPUs"):
        make({"slurm_partition": "boost", "gpu": 5})


def test_jobs_that_no_single_node_holds_together() -> None:
    """Each fits some kind of node, and no kind holds both: a pool for each kind, of the same resources."""
    two = "two|infinite|n/a|64|64000|(null)|x|1\ntwo|infinite|n/a|8|512000|(null)|y|1\n"
    named = [("many", Request(60, 1000)), ("much", Request(1, 400_000)), ("small", Request(1, 1))]
    named = [(rule, replace(request, slurm=(("slurm_partition", "two"),))) for rule, request in named]
    pools = make_pools(TEMPLATE, named, setting=lambda _: None, run=lambda _: Ran(0, two, ""))
    assert [pool.name for pool in pools] == ["two", "two-2"]
    assert [routing.route(request, pools, {}) for _, request in named] == ["two", "two-2", "two"]


def test_a_further_pool_has_more_than_its_job_asks_for() -> None:
    """Jobs that each ask for a little more need few pools; none asks for more than nodes and partition have."""
    (pool,) = make({"slurm_partition": "cpu", "threads": 8, "mem_mb": 20_000, "runtime": 100}, further=True)
    assert (pool.cores, pool.walltime_s) == (12, 155 * 60)
    (pool,) = make({"slurm_partition": "cpu", "threads": 48, "runtime": 1435}, further=True)
    assert (pool.cores, pool.walltime_s) == (48, 24 * 3600)


def test_of_several_partitions_the_longest_limit_counts() -> None:
    """Slurm takes either for an allocation; only those whose nodes hold the jobs."""
    both = "main|04:00:00|n/a|8|64000|(null)|x|4\nfast|00:30:00|n/a|8|64000|(null)|x|4\n"
    named = [("r", replace(Request(1, runtime_s=3 * 3600.0), slurm=(("slurm_partition", "main,fast"),)))]
    (pool,) = make_pools(TEMPLATE, named, setting=lambda _: None, run=lambda _: Ran(0, both, ""))
    assert pool.walltime_s == 3 * 3600 + 300


def test_partition_that_slurm_does_not_know() -> None:
    """The error names those that there are, and what to change; also where the sizes are given."""
    sized = replace(TEMPLATE, cores=4, memory_mb=8000)
    for template in (TEMPLATE, sized):
        with pytest.raises(
            ConfigurationError,
            match=r"Rule r1: there is no partition cpuu \(did you mean cpu\?\) among boost, cpu.*slurm_partition",
        ):
            make({"slurm_partition": "cpuu"}, template=template)
    with pytest.raises(ConfigurationError, match=r"no partition cpuu.*`queue` in the options"):
        make({}, queue="cpuu")


def test_slurm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands are named, before nodes are asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    question = Question(Options(pools=(TEMPLATE,), make_slurm_pools=True), ())
    assert "its commands sbatch, scancel, squeue are not on PATH" in "\n".join(answer(question).complaints)


def test_slurm_that_does_not_answer() -> None:
    """Sizes can be given instead; then it is not needed."""

    def silent(_: Sequence[str]) -> Ran:
        return Ran(1, "", "slurm_load_partitions: Unable to contact slurm controller")

    with pytest.raises(ConfigurationError, match=r"Unable to contact.*try again once it does, or give"):
        make_pools(TEMPLATE, [], setting=lambda _: None, run=silent)
    sized = replace(TEMPLATE, cores=4, memory_mb=8000)
    (pool,) = make_pools(sized, [], setting=lambda _: None, run=silent)
    assert pool.cores == 4


def test_slurm_that_counts_no_memory() -> None:
    """Where nodes state no memory, all of it is asked for."""
    (pool,) = make({"slurm_partition": "open", "mem_mb": 3000, "threads": 2})
    assert pool.options["job_mem"] == "0"
    assert usable_memory_mb(pool.memory_mb or 0) >= 3000


@pytest.mark.parametrize(
    "resources", [{"clusters": "far"}, {"slurm_cluster": "far"}, {"slurm_extra": "--comment=x -M far --exclusive"}]
)
def test_sinfo_of_another_cluster_is_asked(resources: dict[str, str]) -> None:
    """Wherever it is named."""
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> Ran:
        asked.append(command)
        return sinfo(command)

    make_pools(TEMPLATE, [("r", request_from_resources(resources, 1))], setting=lambda _: None, run=run)
    assert all("--clusters=far" in command for command in asked)


def test_sinfo_is_read() -> None:
    """Stars, limits, GPUs with and without models, and lines that are not about nodes."""
    kinds = parse_sinfo("CLUSTER: far\na*|infinite|n/a|4+|100+|gpu:2,gpu:h100:1(S:0),nvme:1|x,y|3\n")
    (kind,) = kinds
    assert (kind.partition, kind.default, kind.limit_s, kind.cores, kind.memory_mib) == ("a", True, None, 4, 100)
    assert kind.gpus == (("", 2), ("h100", 1))
    assert kind.features == {"x", "y"}


@given(st.integers(min_value=1, max_value=2_000_000))
def test_granted_memory_is_usable(memory_mb: int) -> None:
    """`granting` gives the smallest worker that leaves so much to jobs."""
    worker = granting(memory_mb)
    assert usable_memory_mb(worker) >= memory_mb
    assert usable_memory_mb(worker - 2) < memory_mb


@given(
    st.lists(
        st.builds(
            lambda cores, memory, gpus: Request(cores, memory, gpus=gpus, slurm=(("slurm_partition", "boost"),)),
            st.integers(1, 32), st.none() | st.integers(1, 500_000), st.integers(0, 4),
        ),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_size_holds_each_job_and_stays_within_the_node(requests: list[Request]) -> None:
    """Whatever the jobs ask, each fits into a worker, and a worker into a node."""
    (pool,) = make_pools(TEMPLATE, [("r", each) for each in requests], setting=lambda _: None, run=sinfo)
    shapes = {pool.name: routing.shape_of(pool)}
    for request in requests:
        assert routing.route(request, [pool], shapes) == pool.name
    assert (pool.cores or 0) <= 32
    assert (pool.memory_mb or 0) <= 512000 * 2**20 // 10**6
    assert (pool.gpus or 0) <= 4
