"""A pools file from what Slurm's commands print, as those of a larger site with accounting do."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.batch.allocations import Ran, user_name
from snakemake_executor_plugin_dask.cli import slurm_site
from snakemake_executor_plugin_dask.cli.commands import main
from snakemake_executor_plugin_dask.cli.slurm_site import pools_text
from snakemake_executor_plugin_dask.config.poolsfile import read_pools_file
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool

# Partition, its limit, default time, cores, MiB, gres, features, nodes, state.
SINFO = """\
main*|4-00:00:00|1:00:00|128|257000|(null)|zen2,ib|90|alloc
main*|4-00:00:00|1:00:00|128|257000|(null)|zen3,ib|30|idle
main*|4-00:00:00|1:00:00|128|257000|(null)|zen3,ib|5|drain
main*|4-00:00:00|1:00:00|128|1031000|(null)|zen2,ib|4|mix
short|1:00:00|30:00|128|257000|(null)|zen2,ib|120|mix
accel|1-00:00:00|1:00:00|64|515000|gpu:a100:4(S:0-1)|zen3|8|mix~
accel|1-00:00:00|1:00:00|64|515000|gpu:h100:2,gpu:a40:2|zen3|1|idle
staff|infinite|1:00:00|128|257000|(null)|zen2|10|idle
broken|infinite|1:00:00|8|1000|(null)|(null)|2|down*
old|infinite|n/a|16|1|(null)|(null)|3|idle
"""
PARTITION = "PartitionName={} AllowGroups=ALL AllowAccounts={} AllowQos=ALL RootOnly=NO PreemptMode={} State=UP {}"
WEIGHTS = "TRESBillingWeights=CPU=1.0,Mem=0.25G,GRES/gpu=32"


GPUS = ["accel-64c-503g-a100", "accel-64c-503g-h100-a40"]


def site(weights: str = "", sacctmgr: str = "") -> Callable[[Sequence[str]], Ran]:
    """The site's commands."""
    shown = "\n".join(
        PARTITION.format(name, accounts, preempt, f"MaxCPUsPerNode=UNLIMITED {weights}")
        for name, accounts, preempt in (
            ("main", "ALL", "OFF"),
            ("short", "ALL", "OFF"),
            ("accel", "physics,chemistry", "REQUEUE"),
            ("staff", "operators", "OFF"),
            ("broken", "ALL", "OFF"),
            ("old", "ALL", "OFF"),
        )
    )

    def run(command: Sequence[str]) -> Ran:
        answers = {"sinfo": Ran(0, SINFO, ""), "scontrol": Ran(0, shown, "")}
        return answers.get(command[0]) or Ran(0 if sacctmgr else 1, sacctmgr, "no accounting")

    return run


def read(text: str, tmp_path: Path) -> tuple[Pool, ...]:
    path = tmp_path / "pools.yaml"
    path.write_text(text)
    return read_pools_file(path)[0]


def test_a_pool_for_each_kind_of_node(tmp_path: Path) -> None:
    """In the order in which jobs should try them; what the user cannot use is left out, and it is said why."""
    text = pools_text(site(sacctmgr="teaching|normal\nphysics|normal,long\n"))
    pools = {pool.name: pool for pool in read(text, tmp_path)}
    assert list(pools) == ["old", "short", "main-128c-251g", "main-128c-1007g", *GPUS]
    small = pools["main-128c-251g"]
    assert (small.cores, small.workers_max, small.walltime_s) == (128, 10, 86400.0)
    assert small.options == {"queue": "main", "job_mem": "257000M"}
    gpu = pools["accel-64c-503g-a100"]
    assert (gpu.gpus, gpu.gpu_model, gpu.workers_max) == (4, "a100", 8)
    assert gpu.options["account"] == "physics"
    assert gpu.options["job_extra_directives"] == ["--gres=gpu:a100:4"]
    assert pools["accel-64c-503g-h100-a40"].options["job_extra_directives"] == ["--gres=gpu:h100:2,gpu:a40:2"]
    for words in (
        "Left out: partition staff (it is for the accounts operators).",
        "Left out: partition broken (none of its nodes takes jobs now).",
        "# Your accounts: physics, teaching.",
        "Partition main (the default): 120 nodes with 128 cores, 269.5 GB; at most 4d.",
        "its jobs may be preempted",
        "ib, zen2, zen3",
        "Slurm does not say: correct it",
        "GPUs last.",
    ):
        assert words in text


def test_what_costs_least_comes_first_where_the_site_bills(tmp_path: Path) -> None:
    """By its weights for a whole node; nodes that a longer partition has, too, are left to that one."""
    text = pools_text(site(WEIGHTS))
    names = [pool.name for pool in read(text, tmp_path)]
    assert names[0] == "old"
    assert names[-2:] == GPUS
    assert names.index("main-128c-251g") < names.index("main-128c-1007g")
    assert "a node is billed 190.744 an hour" in text
    assert "# what costs least, as the site bills it; small nodes before large ones" in text
    # Who uses which account is not known without accounting, so nothing is left out by it.
    assert "partition staff" in text.lower()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command `snakemake-dask pools`, which asks this site; the exit code."""

    def ask(run: Callable[[Sequence[str]], Ran], *more: str) -> int:
        monkeypatch.setattr(slurm_site, "run_here", run)
        return main(["pools", "--from-slurm", *more])

    return ask


@pytest.mark.parametrize("failing", ["sinfo", "scontrol"])
def test_without_slurm(failing: str, asked: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, and exit code 1."""
    answers = site()

    def run(command: Sequence[str]) -> Ran:
        return Ran(127, "", f"{failing}: No such file or directory") if command[0] == failing else answers(command)

    assert asked(run) == 1
    said = capsys.readouterr().err
    assert f"{failing}: No such file or directory" in said
    assert said.count("\n") == 1


def test_nothing_that_the_user_may_use() -> None:
    """Each partition with the reason."""
    answers = site()

    def run(command: Sequence[str]) -> Ran:
        done = answers(command)
        return Ran(0, done.out.replace("State=UP", "State=DOWN"), "") if command[0] == "scontrol" else done

    with pytest.raises(ConfigurationError, match=f"that {user_name()} may use .main: it is not up"):
        pools_text(run)


def test_a_file_that_is_there_is_kept(
    tmp_path: Path, asked: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been changed by hand."""
    path = tmp_path / "pools.yaml"
    assert asked(site(), "--output", str(path)) == 0
    before = path.read_text()
    assert asked(site(), "--output", str(path)) == 1
    assert path.read_text() == before
    assert "already exists" in capsys.readouterr().err
