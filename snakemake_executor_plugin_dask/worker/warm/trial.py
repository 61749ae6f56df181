"""The trial of a warm process: jobs of its own, which its children must be able to run before it says that it is ready.

What is private to Snakemake changes without a word. A job shows in a few milliseconds whether it still serves.
These jobs go through all that a job goes through, and work in a directory of their own.
"""

import os
import pickle

from snakemake_executor_plugin_dask.model.frozen import dataclass
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.warmcall import Call

_WILDCARD = "snakemake_dask_trial"
_SNAKEFILE = """
rule snakemake_dask_trial_command:
    container: None
    input: first="input"
    output: "{snakemake_dask_trial}.command"
    threads: 4
    shell: "echo $(cat {input.first}) {wildcards.snakemake_dask_trial} {threads} > {output}"

rule snakemake_dask_trial_function:
    container: None
    output: "{snakemake_dask_trial}.function"
    params: value=lambda wildcards: wildcards.snakemake_dask_trial
    resources: snakemake_dask_trial=lambda wildcards, attempt: attempt
    shell: "echo {params.value} {resources.snakemake_dask_trial} > {output}"

rule snakemake_dask_trial_dag:
    container: None
    shell: "echo $SNAKEMAKE_DASK_JOB > \\"$SNAKEMAKE_DASK_TRIAL\\""
"""


@dataclass(frozen=True, slots=True)
class TrialJob:
    """A job, and what it must have written to be as it should be."""

    spec: JobSpec
    command: bool  # it is run as a shell command, by a child that can then run another
    path: str
    text: str

    @property
    def depth(self) -> int:
        """At which it is to run."""
        return 2 if self.spec.call is None else 3

    def check(self, *, is_command: bool) -> None:
        """Raises ValueError where it would be run in another way."""
        if is_command != self.command:
            msg = f"the trial job {self.spec.name} is {'not ' if self.command else ''}taken for a shell command"
            raise ValueError(msg)

    def reason(self) -> str:
        """What is wrong with its output; empty: nothing."""
        try:
            with open(self.path) as file:
                found = file.read().strip()
        except OSError as error:
            return f"a trial job left no output ({error.strerror})"
        return "" if found == self.text else f"a trial job wrote `{found}` instead of `{self.text}`"


def lay_out(directory: str) -> str:
    """Write what the jobs need; returns the path of their Snakefile."""
    snakefile = os.path.join(directory, "trial.smk")
    for path, text in ((snakefile, _SNAKEFILE), (os.path.join(directory, "input"), "input\n")):
        with open(path, "w") as file:
            file.write(text)
    return snakefile


def calls(directory: str) -> list[TrialJob]:
    """Jobs that one child runs one after the other at depth 3; with the last one it ends."""
    return [
        _call(directory, "command", "0", "input 0 2"),
        _call(directory, "command", "1", "input 1 2"),
        _call(directory, "function", "2", "2 3"),
    ]


def dag(setup: RunSetup, directory: str) -> TrialJob:
    """A job with a DAG and a scheduler of its own. It has no output: of one, marks would be left in `.snakemake`."""
    rule = "snakemake_dask_trial_dag"
    arguments = ["--snakefile", setup.snakefile, "--target-jobs", f"{rule}:", "--allowed-rules", rule]
    arguments += ["--cores", "1", "--max-threads", "1", "--attempt", "1", "--force-use-threads"]
    path = os.path.join(directory, "dag")
    spec = JobSpec(
        rule, rule, "0", 1, tuple(arguments), 1, os.path.join(directory, "dag.log"),
        # Snakemake's default one calls another program, which leaves files behind if it is killed.
        overrides=pickle.dumps({"scheduler": "greedy"}),
        environment=(("SNAKEMAKE_DASK_TRIAL", path),),
    )  # fmt: skip
    return TrialJob(spec, command=False, path=path, text=rule)


def last_words(job: TrialJob) -> str:
    """The last line that a job and those before it wrote which names an error; empty: there is none."""
    try:
        with open(job.spec.log_path, errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if "Error" in line or "Exception" in line), "")


def _call(directory: str, kind: str, value: str, text: str) -> TrialJob:
    rule, output = f"snakemake_dask_trial_{kind}", f"{value}.{kind}"
    inputs = ["input"] if kind == "command" else []
    names: list[tuple[str, tuple[int, int | None]]] = [("first", (0, None))] if inputs else []
    call = Call(rule, {_WILDCARD: value}, inputs, names, [], [output], 0, {})
    spec = JobSpec(
        f"{rule}-{value}", rule, "0", 3, (), 2, os.path.join(directory, "log"), call=pickle.dumps(tuple(call))
    )  # fmt: skip
    return TrialJob(spec, command=kind == "command", path=os.path.join(directory, output), text=text)
