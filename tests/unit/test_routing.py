"""Which pool takes a request, and what is said where none can."""

import pytest
from deciding import UUIDS, a_pool, facts_of

from snakemake_executor_plugin_dask.decide.hints import (
    capped_threads,
    few_jobs,
    missing,
    slow_choice,
    slurm_ignored,
    slurm_on_local,
    unused,
)
from snakemake_executor_plugin_dask.decide.localpool import adapt_to_local, local_warning
from snakemake_executor_plugin_dask.decide.needs import need_of
from snakemake_executor_plugin_dask.decide.routing import (
    NoPool,
    Shape,
    check_all,
    model_matches,
    route,
    shape_of,
    shape_of_worker,
)
from snakemake_executor_plugin_dask.model.pools import usable_memory_mb
from snakemake_executor_plugin_dask.model.requests import Origin, Request, request_from_resources

CPU = a_pool("cpu", cores=48, memory_mb=180_000, walltime_s=4 * 3600.0)
GPU = a_pool("gpu", cores=32, memory_mb=480_000, gpus=4, gpu_model="a100", walltime_s=8 * 3600.0)
WIDE = a_pool("wide", cores=48, memory_mb=180_000, nodes=4, walltime_s=7200.0)
MPI = a_pool("mpi", "mpi", cores=8, memory_mb=20_000, workers_min=3, workers_max=3)
POOLS = (CPU, GPU, WIDE)


@pytest.mark.parametrize(
    ("request_", "pool"),
    [
        (Request(1), "cpu"),
        (Request(48, 179_700, 4 * 3600.0), "cpu"),
        (Request(1, 179_701), "gpu"),
        (Request(1, runtime_s=4 * 3600.0 + 1), "gpu"),
        (Request(1, gpus=1), "gpu"),
        (Request(1, gpus=4, gpu_model="A100"), "gpu"),
        (Request(96, nodes=2), "wide"),
        (Request(1, pool="gpu"), "gpu"),
        (Request(150, mpi=True), "wide"),
        (Request(8, mpi=True), "cpu"),
        (Request(0), "cpu"),
    ],
)
def test_the_first_pool_that_can_hold_it_takes_it(request_: Request, pool: str) -> None:
    """Pools are asked in the file's order, and a named pool outright."""
    assert route(request_, POOLS, {}) == pool


def test_a_pool_that_was_given_up_is_passed_over() -> None:
    """A job goes on to the next pool that can hold it."""
    assert route(Request(1), POOLS, {}, given_up={"cpu"}) == "gpu"
    with pytest.raises(NoPool, match="given up"):
        route(Request(1, pool="cpu"), POOLS, {}, given_up={"cpu"})


def test_the_rule_is_not_to_blame_for_a_pool_that_was_given_up() -> None:
    """Where a pool would hold the job if its workers came up, nothing in the rule needs to change."""
    with pytest.raises(NoPool, match="fix that, and run Snakemake again") as told:
        route(Request(1), (CPU,), {}, given_up={"cpu"})
    assert "what the rule asks for" not in str(told.value)


def test_a_wide_pool_takes_only_jobs_that_ask_for_nodes_or_mpi() -> None:
    """Whole nodes are not for ordinary jobs, however the pools are ordered."""
    assert route(Request(1), (WIDE, CPU), {}) == "cpu"
    assert route(Request(1, mpi=True), (WIDE, CPU), {}) == "wide"
    with pytest.raises(NoPool, match="declare nodes, mpi or dask_workers"):
        route(Request(1), (WIDE,), {})


def test_an_mpi_pool_takes_a_job_on_as_many_nodes_as_it_has_workers() -> None:
    """Each of the nodes is one worker."""
    assert route(Request(24, nodes=3), (MPI,), {}) == "mpi"
    assert route(Request(20, mpi=True), (MPI,), {}) == "mpi"
    with pytest.raises(NoPool, match="nodes=4"):
        route(Request(4, nodes=4), (MPI,), {})
    with pytest.raises(NoPool, match="4 nodes"):
        route(Request(25, mpi=True), (MPI,), {})


def test_the_message_lists_each_pool_and_what_to_change() -> None:
    """What was asked, what each pool lacks, and the call that makes it fit."""
    with pytest.raises(NoPool) as caught:
        route(Request(4, 500_000, 10 * 3600.0), POOLS, {}, name="align")
    text = str(caught.value)
    assert "Rule align asks for 4 cores, mem_mb=500000, runtime=600 min" in text
    assert "pool cpu: mem_mb=500000 is more than the 179700 MB usable on a worker" in text
    assert (
        "runtime=600 min is more than the walltime of 240 min (the largest that fits beside the margin is 235)" in text
    )
    assert "pool gpu: " in text
    assert "pool wide: it takes only jobs that declare nodes, mpi or dask_workers." in text
    assert "--set-resources align:mem_mb=479700 align:runtime=475" in text


def test_the_call_in_the_message_makes_it_fit() -> None:
    """Following the message leads to a request that is taken."""
    with pytest.raises(NoPool, match="--set-threads r=48"):
        route(Request(64), (CPU,), {}, name="r")
    assert route(Request(48, 179_700, 235 * 60.0), (CPU,), {}) == "cpu"


def test_the_call_is_for_the_pool_that_holds_most() -> None:
    """Of pools that lack the same, the one where the least has to be given up, wherever it stands in the file."""
    small, big = a_pool("small", memory_mb=1000), a_pool("big", memory_mb=4000)
    for pools in ((small, big), (big, small)):
        with pytest.raises(NoPool, match=r"To make it fit: --set-resources a:mem_mb=3700$"):
            route(Request(1, 5000), pools, {}, name="a")


def test_an_unknown_pool_is_told_with_the_nearest_name() -> None:
    """A slip in dask_pool is found."""
    with pytest.raises(NoPool, match="the pools are cpu, gpu, wide; did you mean gpu"):
        route(Request(1, pool="gpus"), POOLS, {}, name="r")


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("a100", "NVIDIA A100-SXM4-40GB", True),
        ("A100", "a100", True),
        ("a10", "NVIDIA A100-SXM4-40GB", False),
        ("h100", "a100", False),
        ("v100", "Tesla V100-PCIE", True),
        ("a100", "nvidia_a100_3g.20gb", True),
    ],
)
def test_gpu_models(wanted: str, found: str, same: bool) -> None:
    """A model is found as a word, whatever its case."""
    assert model_matches(wanted, found) is same


def test_a_pool_that_states_the_model_comes_first() -> None:
    """A pool without a stated model may hold any, so it is the second choice."""
    unstated = a_pool("some", gpus=4, cores=8)
    assert route(Request(1, gpus=1, gpu_model="a100"), (unstated, GPU), {}) == "gpu"
    assert route(Request(1, gpus=1, gpu_model="h100"), (GPU, unstated), {}) == "some"
    assert route(Request(1, gpus=1), (unstated, GPU), {}) == "some"


def test_resources_that_a_pool_lists_count_and_others_do_not() -> None:
    """Integer resources compare only where the pool lists them."""
    pool = a_pool("p", resources=(("licence", 2),))
    assert route(Request(1, extra=(("licence", 2), ("other", 99))), (pool,), {}) == "p"
    with pytest.raises(NoPool, match="licence=3 is more than the 2"):
        route(Request(1, extra=(("licence", 3),)), (pool,), {})


def test_what_was_seen_of_a_worker_wins() -> None:
    """A worker's real size replaces what was declared, and fills in what was not."""
    pool = a_pool("p", cores=None, memory_mb=None)
    assert route(Request(1000, 10**9), (pool,), {}) == "p"
    seen = shape_of_worker(pool, facts_of(pool, cores=4, memory_mb=1000, devices=UUIDS, remaining_s=600.0))
    assert seen == Shape(cores=4, memory_mb=1000, gpus=0, lifetime_s=600.0)
    with pytest.raises(NoPool):
        route(Request(5), (pool,), {"p": shape_of(pool, seen)})
    assert shape_of_worker(GPU, facts_of(GPU)).gpus == 4


def test_a_pool_made_for_slurm_resources_takes_only_its_own() -> None:
    """Jobs that agree in Slurm's resources share a pool; () is the pool of jobs without any."""
    key = (("slurm_partition", "a"),)
    made = (a_pool("none", slurm=()), a_pool("a", slurm=key))
    assert route(Request(1, slurm=key), made, {}) == "a"
    assert route(Request(1), made, {}) == "none"
    assert route(Request(1, slurm=key), (CPU,), {}) == "cpu"


def test_usable_memory_keeps_a_reserve() -> None:
    """Small workers keep a tenth, others 300 MB."""
    assert usable_memory_mb(1000) == 900
    assert usable_memory_mb(180_000) == 179_700


def test_all_requests_are_checked_at_once() -> None:
    """One paragraph for each rule, however many of its jobs do not fit."""
    named = [("a", Request(1, 10**7 + number)) for number in range(3)] + [("b", Request(999)), ("c", Request(1))]
    text = check_all(named, POOLS, {})
    assert text is not None
    assert text.count("Rule a asks") == 1
    assert "2 more jobs of this rule" in text
    assert "Rule b asks" in text
    assert "Rule c" not in text
    assert check_all(named[-1:], POOLS, {}) is None


def test_missing_declarations_are_named_once() -> None:
    """One sentence for mem_mb and one for runtime, each with its rules."""
    named = [("a", Request(1)), ("a", Request(1)), ("b", Request(1, 5)), ("c", Request(1, 5, 60.0))]
    memory, runtime = missing(named, ending=True)
    assert "mem_mb is declared by rule a:" in memory
    assert "runtime is declared by rules a, b:" in runtime
    assert missing(named[-1:], ending=True) == ()
    assert missing(named, ending=False) == (memory,), "where no worker ends, runtime decides nothing"


def test_what_a_function_of_inputs_declares_is_not_missing() -> None:
    """It is known once the inputs are there."""
    declared = Request(1, origin=Origin(pending=("mem_mb", "runtime")))
    assert missing([("a", declared)], ending=True) == ()


def test_few_jobs_are_hinted_at() -> None:
    """Where --jobs is less than what the workers could run, and jobs wait for it."""
    pool, ten = a_pool("p", workers_max=1, cores=2), [("a", Request(1))] * 10
    text = few_jobs(1, ten, [pool], {"p": shape_of(pool)})
    assert text is not None
    assert text.startswith("--jobs 1 lets the plugin see 1 job at once, and its workers have 2 cores")
    assert few_jobs(2, ten, [pool], {"p": shape_of(pool)}) is None
    assert few_jobs(1, ten[:1], [pool], {"p": shape_of(pool)}) is None
    assert few_jobs(1, [("a", Request(2))] * 10, [pool], {"p": shape_of(pool)}) is None


def test_threads_that_cores_caps_are_hinted_at() -> None:
    """Where jobs have as many threads as --cores allows, and all of them together leave cores of a worker idle."""
    pool = a_pool("p", workers_max=1, cores=8)
    shapes = {"p": shape_of(pool)}
    text = capped_threads(2, [("a", Request(2)), ("b", Request(1))], [pool], shapes)
    assert text is not None
    assert text.startswith("--cores 2 lets no job have more than 2 threads, and a worker has 8 cores")
    assert capped_threads(None, [("a", Request(2))], [pool], shapes) is None
    assert capped_threads(2, [("a", Request(1))], [pool], shapes) is None
    assert capped_threads(8, [("a", Request(8))], [pool], shapes) is None
    assert capped_threads(2, [("a", Request(2))] * 4, [pool], shapes) is None


def test_an_mpi_job_takes_whole_tasks_on_each_node() -> None:
    """Three tasks of two cores, on nodes of three cores: one on each; memory for each core counts by node."""
    pool = a_pool("wide", cores=3, memory_mb=4000, nodes=3)
    request = request_from_resources({"mpi": "srun", "tasks": 3, "cpus_per_task": 2, "mem_mb_per_cpu": 1000}, 1)
    need = need_of(request, pool, shape_of(pool))
    assert (need.nodes, need.node.cores, need.node.memory_mb) == (3, 2, 2000)
    assert route(request, [pool], {}) == "wide"
    by_memory = request_from_resources({"mpi": "srun", "tasks": 4, "mem_mb_per_cpu": 2000}, 1)
    assert need_of(by_memory, pool, shape_of(pool)).nodes == 4, "its memory decides"


def test_who_waits_for_snakemakes_own_choice_is_told() -> None:
    """Where thousands of jobs are ready under a scheduler whose time grows with their square, and nowhere else."""
    text = slow_choice("greedy", 20_000)
    assert text is not None
    assert text.startswith("20,000 jobs are ready, among which --scheduler greedy takes long to choose")
    assert "--scheduler firstfit" in text
    assert slow_choice("ilp", 20_000) is not None
    assert slow_choice("firstfit", 20_000) is slow_choice("another-plugin", 20_000) is None
    assert slow_choice("greedy", 1_000) is None
    assert slow_choice(None, 20_000) is None, "--scheduler-subsample bounds it, or nobody can tell"


def test_unused_pools_are_found() -> None:
    """A pool that no request can use is worth a warning."""
    assert unused(POOLS, [("a", Request(1))], {}) == ("wide",)


def test_the_local_pool_adapts_what_a_cluster_would_need() -> None:
    """Threads are capped, nodes count as one, pools are ignored, GPUs are not counted; memory stays."""
    shape = Shape(cores=2, memory_mb=1000, gpus=0)
    request = Request(64, 5000, 60.0, gpus=2, gpu_model="a100", nodes=2, pool="gpu")
    adapted, kinds = adapt_to_local(request, shape)
    assert adapted == Request(2, 5000, 60.0)
    assert set(kinds) == {"threads", "nodes", "dask_pool", "gpu"}
    for kind in kinds:
        assert local_warning(kind, "align", request, shape).startswith("Rule align")
    assert adapt_to_local(Request(2, 5), shape) == (Request(2, 5), ())


def test_the_local_pool_counts_gpus_that_it_was_given() -> None:
    """With --dask-worker-gpus, gpu is held as everywhere."""
    request = Request(1, gpus=1)
    assert adapt_to_local(request, Shape(cores=2, gpus=1)) == (request, ())


def test_slurm_resources_do_not_run_on_a_login_node() -> None:
    """The complaint names rules, resources and both ways out."""
    text = slurm_on_local([("a", ("slurm_partition",)), ("b", ()), ("c", ("gres",))])
    assert text is not None
    assert "gres, slurm_partition" in text
    assert "rules a, c" in text
    assert "--dask-cluster slurm" in text
    assert slurm_on_local([("b", ())]) is None


def test_slurm_resources_beside_a_pools_file_are_ignored_aloud() -> None:
    """One sentence, with the resources and the rules; none where no rule declares any."""
    text = slurm_ignored([("a", ("slurm_partition",)), ("b", ()), ("c", ("gres",))])
    assert text is not None
    assert text.startswith("Slurm's resources (gres, slurm_partition) of rules a, c are ignored")
    assert "--dask-pools" in text
    assert slurm_ignored([("b", ())]) is None
