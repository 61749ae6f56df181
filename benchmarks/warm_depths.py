"""What one trivial job costs: bare bash, a Snakemake of its own, and the warm process at each depth.

At depth 3 a shell command needs no child of its own unless the workflow's author has written a function for it, so that
both are measured. So are group jobs and jobs with a shadow directory, at each depth that they can have.

``./run bench warm_depths [--jobs N] [--cold-jobs N]`` prints medians over jobs: the time from handing a job
over to hearing of its end, one job at a time, and the CPU time of its processes. Then how long each warm process needed
to get ready, and what fifty sleeping jobs hold in memory.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from running import pss_mb, wait_for
from system.warm_harness import Ended, Warm, plan, run_cold

WORKFLOW = """
rule all:
    input: expand("{{n}}.txt", n=range({number}))

rule one:
    output: "{{n}}.txt"
{more}    shell: "{command}"
"""
#: Python of the workflow's author: such a job needs a child of its own.
FUNCTION = "    params: lambda wildcards: wildcards.n\n"
#: The others, each with the depths at which it can start.
KINDS = {
    "group": ("    group: 'pair'\n", (1, 2)),
    "shadow": ("    shadow: 'minimal'\n" + FUNCTION, (1, 2, 3)),
}


def bash(directory: Path, number: int) -> list[Ended]:
    ended = []
    for n in range(number):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        code = subprocess.run(
            ["bash", "-c", f"set -euo pipefail; echo > {n}.txt"], cwd=directory, check=True
        ).returncode
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        ended.append(Ended(code, cpu_s, "", seconds))
    return ended


def show(name: str, ended: Sequence[Ended], base: float | None) -> float:
    wall = statistics.median(one.seconds for one in ended) * 1e3
    cpu = statistics.median(one.cpu_s for one in ended) * 1e3
    failed = sum(one.code != 0 for one in ended)
    ratio = f"{base / wall:8.1f}" if base else " " * 8
    print(
        f"{name:<34}{len(ended):>5}{wall:>10.1f}{cpu:>10.1f}{ratio}" + (f"   {failed} failed" if failed else ""),
        flush=True,
    )
    return wall


def sleepers(directory: Path) -> str:
    (directory / "Snakefile").write_text(
        WORKFLOW.format(number=50, more=FUNCTION, command="sleep 600; echo > {output}")
    )
    setup, specs = plan(directory, "--latency-wait", "0")
    with Warm(setup) as warm:
        pids = [warm.start(spec) for spec in specs]
        shells: dict[int, list[int]] = {}

        def all_sleep() -> bool:
            for pid in pids:
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                shells[pid] = [int(child) for child in text.split()]
            return all(shells.values())

        wait_for(all_sleep, "the jobs' shells")
        time.sleep(1)
        leaders = statistics.median(pss_mb(pid) for pid in pids)
        all_shells = [pid for each in shells.values() for pid in each]
        total = sum(pss_mb(pid) for pid in [*pids, *all_shells, warm.process.pid])
    return f"fifty sleeping jobs: {leaders:.1f} MB each (PSS, median), {total:.0f} MB with shells and the warm process"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=60)
    options.add_argument("--cold-jobs", type=int, default=5)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kinds = {}
        for kind, more in (("shell", ""), ("function", FUNCTION), *((kind, more) for kind, (more, _) in KINDS.items())):
            (directory / kind).mkdir()
            text = WORKFLOW.format(number=arguments.jobs, more=more, command="echo > {output}")
            (directory / kind / "Snakefile").write_text(text)
            kinds[kind] = plan(directory / kind, "--latency-wait", "0")
        setup, specs = kinds["function"]
        print(f"{'one trivial job at a time':<34}{'jobs':>5}{'wall ms':>10}{'CPU ms':>10}{'cold/it':>8}")
        cold = show("cold", [run_cold(setup, spec) for spec in specs[: arguments.cold_jobs]], None)
        show("bash", bash(directory, arguments.jobs), cold)
        notes = []
        ways = [(1, 2, "depth 1, forked ahead"), (2, 2, "depth 2, forked ahead")]
        ways += [(3, 2, "depth 3, child forked ahead"), (3, 0, "depth 3, child forked then")]
        for depth, idle, what in ways:
            started = time.monotonic()
            with Warm(replace(setup, warm_depth=depth), idle_children=idle) as warm:
                notes.append(f"depth {warm.depth} ready after {time.monotonic() - started:.1f} s")
                show(what, [warm.run(spec) for spec in specs], cold)
        setup, specs = kinds["shell"]
        with Warm(replace(setup, warm_depth=3)) as warm:
            show("depth 3, shell without a child", [warm.run(spec) for spec in specs], cold)
        for kind, (_, depths) in KINDS.items():
            setup, specs = kinds[kind]
            for depth in depths:
                with Warm(replace(setup, warm_depth=depth)) as warm:
                    show(f"depth {depth}, {kind}", [warm.run(spec) for spec in specs], cold)
        print("; ".join(notes[:3]))
        (directory / "sleep").mkdir()
        print(sleepers(directory / "sleep"))


if __name__ == "__main__":
    main()
