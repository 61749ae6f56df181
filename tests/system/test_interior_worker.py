"""Where a private part of Snakemake that a warm process uses is named otherwise: jobs run, and what is lost is said."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from mutations import Change, changed
from system.warm_harness import Ended, Warm, planned, run_cold

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


def run_all(tmp_path: Path, changes: Sequence[Change]) -> tuple[Warm, list[Ended]]:
    """All jobs as a supervisor runs them: cold, where the warm process says so."""
    setup, specs = planned(tmp_path, SNAKEFILE)
    path = changed(tmp_path / "site", *changes)
    ends = []
    with Warm(setup, stderr=subprocess.DEVNULL, first_on_path=path) as warm:
        for spec in specs:
            warm.channel.send(("start", spec))
            heard = warm.wait_for_one_of("forked", "spawned", "cold")
            if heard[0] == "cold":
                ends.append(run_cold(setup, spec, first_on_path=path))
            else:
                ends.append(warm.end_of(spec))
    return warm, ends


def test_a_renamed_argument(tmp_path: Path) -> None:
    """Another name of an argument of `run_wrapper`: all jobs are done."""
    _, ends = run_all(tmp_path, [Change("cleanup_scripts")])
    assert [ended.code for ended in ends] == [0] * len(EXPECTED), "\n".join(ended.log for ended in ends)
    assert {name: (tmp_path / f"{name}.txt").read_text().strip() for name in EXPECTED} == EXPECTED
