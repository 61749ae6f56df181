"""Where a private part of Snakemake that a warm process uses is named otherwise: jobs run, and what is lost is said.

The whole list is no part of the default run: ``./run tests interior``.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutations import Change, changed
from system.warm_harness import Warm, planned, run_cold

from snakemake_executor_plugin_dask.model.job_messages import Cold, Forked, Spawned, Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup

SNAKEFILE = """
rule all:
    input: "shell.txt", "again.txt", "run.txt", "shadow.txt", "group.txt"

rule shell:
    output: "{name}.txt"
    wildcard_constraints: name="shell|again"
    threads: 2
    shell: "echo {wildcards.name} {threads} > {output}"

rule run:
    output: "run.txt"
    params: name=lambda wildcards: "run"
    run:
        open(output[0], "w").write(f"{params.name} {threads}\\n")

rule shadow:
    output: "shadow.txt"
    shadow: "minimal"
    shell: "echo shadow 1 > {output}"

rule group:
    output: "group.txt"
    group: "one"
    shell: "echo group 1 > {output}"
"""
EXPECTED = {"shell": "shell 2", "again": "again 2", "run": "run 1", "shadow": "shadow 1", "group": "group 1"}


@dataclass(frozen=True)
class Planned:
    """A run whose jobs are handed to one warm process after the other."""

    workdir: Path
    setup: RunSetup
    specs: list[JobSpec]

    def held(self, change: Change, depth: int, *, no_dag: bool = False) -> None:
        """Every job is done as it should be, as deep as it can, and whoever looks is told what is missing.

        ``no_dag``: jobs that need a DAG start cold.
        """
        for name in EXPECTED:
            (self.workdir / f"{name}.txt").unlink(missing_ok=True)
        path = changed(self.workdir / "site" / change.name, change)
        ends, cold = [], []
        with Warm(self.setup, stderr=subprocess.DEVNULL, first_on_path=path) as warm:
            for spec in self.specs:
                warm.channel.send(Start(spec))
                heard = warm.wait_for(Forked, Spawned, Cold)
                if isinstance(heard, Cold):  # as a supervisor does
                    cold.append(heard.reason)
                    ends.append(run_cold(self.setup, spec, first_on_path=path))
                else:
                    ends.append(warm.end_of(spec))
        assert [ended.code for ended in ends] == [0] * len(EXPECTED), "\n".join(ended.log for ended in ends)
        assert {name: (self.workdir / f"{name}.txt").read_text().strip() for name in EXPECTED} == EXPECTED
        assert (warm.depth, bool(warm.dag_reason)) == (depth, no_dag), (warm.reason, warm.dag_reason)
        assert bool(warm.reason) is (depth < 3)
        assert set(cold) == ({warm.dag_reason} if no_dag else set())
        if depth < 3:
            assert change.name in warm.reason, warm.reason
        if no_dag:
            assert change.name in warm.dag_reason, warm.dag_reason


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    workdir = tmp_path_factory.mktemp("interior")
    return Planned(workdir, *planned(workdir, SNAKEFILE))


_WORKFLOW = r"snakemake\.(workflow|dag|jobs|executors\..*|scheduling\..*)"

#: Private names that the warm process and its children use, by the depth at which jobs start without them. Some words
#: mean other things elsewhere in Snakemake, and are changed where they mean this.
NAMES = {
    # The reading of the workflow.
    1: [
        Change("SnakemakeApi", r"snakemake\.(api|cli)"),
        Change("included", _WORKFLOW, r"(?<=def )included\b|(?<=self\.)included\b"),
        Change("LocalSourceFile"),
    ],
    # The call of a job's own function.
    2: [
        Change("run_wrapper"),
        Change("job_args_and_prepare"),
        Change("_executor_plugin", r"snakemake\.workflow"),
        Change("deactivate_cache"),
        Change("_reason", r"snakemake\.dag"),
        Change("_priority", r"snakemake\.dag"),
        Change("forced", r"snakemake\.(dag|jobs|reason)"),
        Change("_checkpoints"),
        Change("_created_output"),
        Change("linemaps"),
        Change("async_run"),
    ],
}


@pytest.mark.parametrize(("name", "depth"), [("cleanup_scripts", 3), ("_snakemake_tmp_dir", 1), ("_jobid", 2)])
def test_a_renamed_member(run: Planned, name: str, depth: int) -> None:
    """An argument that nothing here names, a member of the workflow, and one of the graph."""
    run.held(Change(name), depth)


def test_a_renamed_member_that_only_a_graph_needs(run: Planned) -> None:
    """Jobs without one start as deep as ever; those with one start cold, for the reason that is told."""
    run.held(Change("_is_in_context"), 3, no_dag=True)


@pytest.mark.interior
@pytest.mark.parametrize(
    ("depth", "change"),
    [pytest.param(depth, change, id=change.name) for depth, changes in NAMES.items() for change in changes],
)
def test_every_name(run: Planned, depth: int, change: Change) -> None:
    """A Snakemake that has renamed it, and else works."""
    run.held(change, depth)
