"""The CPU time that a job's outcome names, against what a program with known use says of itself."""

import json
from pathlib import Path

import pytest
from running import snakemake

#: Uses a second of CPU, however long that takes on a busy machine, and says what it used at its very end.
BURN = """\
import json, os, sys, time

def burn(path, seconds=1.0):
    began = sum(os.times()[:4])
    while sum(os.times()[:4]) - began < seconds:
        for _ in range(10_000):
            pass
        os.stat("/")
    with open(path, "w") as file:
        json.dump(sum(os.times()[:4]) - began, file)

if __name__ == "__main__":
    burn(*sys.argv[1:2])
"""

SNAKEFILE = """
KINDS = ("shell", "run", "script", "children", "orphan", "idle")

rule all:
    input: expand("{kind}.json", kind=[f"use_{kind}" for kind in KINDS])

rule use_shell:
    output: "use_shell.json"
    shell: "python burn.py {output}"

rule use_run:
    output: "use_run.json"
    run:
        from burn import burn
        burn(output[0])

rule use_script:
    output: "use_script.json"
    script: "script.py"

rule use_children:
    output: "use_children.json"
    shell:
        '''
        python burn.py a.part & (python burn.py b.part) & wait
        python -c 'import json; print(sum(json.load(open(n)) for n in ("a.part", "b.part")))' > {output}
        '''

rule use_orphan:
    output: "use_orphan.json"
    shell: "(setsid python burn.py {output} &) ; while ! test -s {output}; do sleep 0.2; done"

rule use_idle:
    output: "use_idle.json"
    shell: "echo 0 > {output}"
"""


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.variant)])
def test_cpu_time_is_what_the_program_used(tmp_path: Path, start: str) -> None:
    """Shell, `run:` and `script:` rules, children in the background, and one that left its session, within 5 %."""
    (tmp_path / "burn.py").write_text(BURN)
    (tmp_path / "script.py").write_text("from burn import burn\nburn(snakemake.output[0])\n")
    environment = "import os, sys; sys.path.insert(0, os.getcwd()); os.environ['PYTHONPATH'] = os.getcwd() + "
    environment += "os.pathsep + os.environ.get('PYTHONPATH', '')\n"
    with snakemake(tmp_path, environment + SNAKEFILE, "--dask-job-start", start) as run:
        assert run.wait() == 0, run.output
        outcomes = [event["outcome"] for event in run.events("job-ended")]
    used = {outcome["key"].split("-")[0]: outcome["cpu_s"] for outcome in outcomes}
    assert {outcome["start"] for outcome in outcomes} == {start}
    own = used.pop("use_idle")  # the job's own Snakemake
    for rule, cpu_s in used.items():
        said = json.loads((tmp_path / f"{rule}.json").read_text())
        # Each Python that a job starts takes some time itself, before it measures.
        assert 0.95 * said <= cpu_s <= 1.05 * said + 1.25 * own + 0.5, (rule, said, cpu_s, own)
