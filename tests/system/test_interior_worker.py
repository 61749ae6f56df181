"""Where a private part of Snakemake that a warm process uses is named otherwise: jobs run, and what is lost is said.

The whole list is no part of the default run: ``./run tests interior``.
"""

import html
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutations import Change, attribute, changed, field, where
from running import snakemake
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

    def held(self, name: str, depth: int, *, no_dag: bool = False, words: str = "") -> None:
        """Every job is done as it should be, as deep as it can, and whoever looks is told what is missing.

        ``no_dag``: jobs that need a DAG start cold. At depth 0 all do.
        """
        for rule in EXPECTED:
            (self.workdir / f"{rule}.txt").unlink(missing_ok=True)
        path = changed(self.workdir / "site" / name, *PATTERNS.get(name, (Change(name),)))
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
        assert {rule: (self.workdir / f"{rule}.txt").read_text().strip() for rule in EXPECTED} == EXPECTED
        assert (warm.depth, bool(warm.dag_reason)) == (depth, no_dag), (warm.reason, warm.dag_reason)
        assert bool(warm.reason) is (depth < 3)
        assert set(cold) == ({warm.reason} if depth == 0 else {warm.dag_reason} if no_dag else set())
        if depth < 3:
            assert name in warm.reason, warm.reason
        assert words in warm.dag_reason, warm.dag_reason


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    workdir = tmp_path_factory.mktemp("interior")
    return Planned(workdir, *planned(workdir, SNAKEFILE))


_WORKFLOW = r"snakemake\.(workflow|dag|jobs|executors\..*|scheduling\..*)"

#: Names that the warm process and its children use, by the depth at which jobs start without them.
NAMES = {
    0: "args_to_api parse_args",
    # The reading of the workflow, and what a job needs with and without a DAG.
    1: "LocalSourceFile Resource SnakemakeApi Workflow _async_executor _async_runners config_settings cores "
    "configfiles execute from_cli_expression get_path_or_uri global_resources globals include included max_threads "
    "module_globals resource_settings rules _snakemake_tmp_dir tempfile",
    # The call of a job's own function.
    2: "IOFile InputFiles Job _checkpoints _cleanup _created_output _evaluator _executor_plugin _jobid _prepare_dag "
    "_priority _reason _take_names async_run attempt cleanup conda_block_conflicting_envvars "
    "conda_not_block_search_path_envvars deactivate deactivate_cache expand_input expand_priority flag forced get_rule "
    "iocache is_evaluable is_flagged is_shell job_args_and_prepare linemaps message params postprocess "
    "print_exception priority run_wrapper shadow_prefix sp wildcards_dict workflow_settings",
    # Without them a job takes some milliseconds more, or a line of its log tells less.
    3: "_cores _runtime_cache_path check_protected_output cleanup_scripts prepare shellcmd sourcecache start_time "
    "wildcard_names",
}
#: Where a word means other things elsewhere in Snakemake, it is changed where it means this.
PATTERNS: dict[str, tuple[Change, ...]] = {
    "SnakemakeApi": (Change("SnakemakeApi", r"snakemake\.(api|cli)"),),
    "_cleanup": (Change("_cleanup", r"snakemake\.(api|cli)"),),
    "_cores": where("_cores", r"(?<=self\.)_cores\b", r"(?<=workflow\.)_cores\b", r"(?<=def )_cores\b"),
    "_executor_plugin": (Change("_executor_plugin", r"snakemake\.workflow"),),
    "_priority": (Change("_priority", r"snakemake\.dag"),),
    "_reason": (Change("_reason", r"snakemake\.dag"),),
    "attempt": field("execution_settings", "attempt"),
    "cleanup": (
        *where("cleanup", r"(?<=def )cleanup\b", modules=r"snakemake\.shell"),
        *where("cleanup", r"(?<=shell\.)cleanup\b"),
    ),
    "cores": field("resource_settings", "cores"),
    "conda_not_block_search_path_envvars": field("deployment_settings", "conda_not_block_search_path_envvars"),
    "deactivate": where("deactivate", r"(?<=def )deactivate\b", r"(?<=\.)deactivate\b"),
    "execute": where("execute", r"(?<=def )execute\b", r"(?<=\.)execute\b", modules=r"snakemake\.(workflow|api)"),
    "flag": where("flag", r"(?<![\w.\"'-])flag\b(?!=)", modules=r"snakemake(?!\.caching)(\..*)?"),
    "forced": (Change("forced", r"snakemake\.(dag|jobs|reason)"),),
    "globals": where("globals", r"(?<=def )globals\b", r"(?<=\.)globals\b"),
    "include": where("include", r"(?<=def )include\b", r"(?<=\.)include\b"),
    "included": where("included", r"(?<=def )included\b", r"(?<=self\.)included\b", modules=_WORKFLOW),
    "max_threads": field("resource_settings", "max_threads"),
    "is_flagged": where("is_flagged", r"(?<![.\w])is_flagged\b(?!\(self, flag: str\))"),  # not the method
    "message": attribute("message", "rule", r"snakemake\.rules"),
    "params": attribute("params", "rule", r"snakemake\.rules"),
    "parse_args": where("parse_args", r"(?<![.\w])parse_args\b"),
    "postprocess": (
        *where("postprocess", r"(?<=async def )postprocess\b", modules=r"snakemake\.jobs"),
        *where("postprocess", r"(?<=\bjob\.)postprocess\b"),
    ),
    "priority": attribute("priority", "rule", r"snakemake\.rules"),
    "rules": attribute("rules", "workflow", r"snakemake\.workflow"),
    "shadow_prefix": field("execution_settings", "shadow_prefix"),
    "sourcecache": where(
        "sourcecache", r"(?<=workflow\.)sourcecache\b", r"(?<=self\.)sourcecache\b", r"(?<=def )sourcecache\b"
    ),
    "sp": (Change("sp", r"snakemake\.shell"),),
    "tempfile": (
        Change("tempfile", r"snakemake\.workflow", r"(?<!\w)tempfile(?=\.)", "tempfile_renamed"),
        Change("tempfile", r"snakemake\.workflow", r"(?m)^import tempfile$", "import tempfile as tempfile_renamed"),
    ),
    "unneeded_temp_files": field("storage_settings", "unneeded_temp_files"),
    "wildcards_dict": attribute("wildcards_dict", "job", r"snakemake\.jobs"),
    "workflow": where(
        "workflow", r"(?<=def )workflow\b", r"(?<=snakemake_api\.)workflow\b", modules=r"snakemake\.(api|cli)"
    ),
}
#: Some of those are in every run; the others take too long for it.
SAMPLE = ("cleanup_scripts", "_snakemake_tmp_dir", "_jobid", "is_evaluable")


def cases() -> list[object]:
    return [
        pytest.param(name, depth, id=name, marks=() if name in SAMPLE else pytest.mark.interior)
        for depth, names in NAMES.items()
        for name in names.split()
    ]


@pytest.mark.parametrize(("name", "depth"), cases())
def test_a_renamed_member(run: Planned, name: str, depth: int) -> None:
    """A Snakemake that has renamed it, and else works."""
    run.held(name, depth)


#: Without these, jobs that need a DAG start cold, for a reason with these words, and the others at depth 3.
NO_DAG = {
    "_is_in_context": "_is_in_context",
    "_workflow_api": "_workflow_api",
    "unneeded_temp_files": "unneeded_temp_files",
    "workflow": "There is no rule named",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "_is_in_context" else pytest.mark.interior) for name in NO_DAG]
)
def test_a_renamed_member_that_only_a_graph_needs(run: Planned, name: str) -> None:
    """Jobs without one start as deep as ever; those with one start cold, for the reason that is told."""
    run.held(name, 3, no_dag=True, words=NO_DAG[name])


def test_a_run_tells_how_deep_its_jobs_start_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all workers, with what it costs; then in the event log, in the status and in the report."""
    monkeypatch.setenv("PYTHONPATH", changed(tmp_path / "site", Change("_jobid")))
    place = tmp_path / "run"
    with snakemake(place, SNAKEFILE, "--dask-workers", "2", "--dask-report", "report.html") as run:
        assert run.wait() == 0, run.output
    why = "AttributeError: 'DAG' object has no attribute '_jobid'"
    sentence = (
        f"Jobs start at depth 2 instead of 3, since: {why}. So each makes a DAG of its own, which takes some 50 ms"
    )
    assert " ".join(run.output.split()).count(sentence) == 1, run.output
    started = run.events("job-started")
    assert [event["start_depth"] for event in started] == [2] * len(EXPECTED)
    # The group job could not start deeper.
    assert sorted(event["start_reason"] for event in started) == ["", *[why] * (len(EXPECTED) - 1)]
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", "status"]
    status = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
    for told in (status, html.unescape((place / "report.html").read_text())):
        assert "depth 2" in told
        assert why in told
