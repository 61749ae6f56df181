"""A Dask computation in a rule with `dask_workers`, against a LocalCluster and a SLURMCluster in a plain script."""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import ending, fresh, heading, row, scratch, snakemake, with_commands

KINDS = ("array", "array, CPU time", "dataframe", "dataframe, CPU time")
MEMORY_MB = 1000  # of each worker

#: Whatever has the workers: with the arguments OUTPUT CLUSTER N SIZE. Times are from the script's first line on.
SCRIPT = """
import time
began = time.monotonic()
import importlib.util, json, sys
import dask.array as da
from dask.distributed import Client, LocalCluster
frames = importlib.util.find_spec("pandas") and importlib.util.find_spec("pyarrow")
if frames:
    from dask.datasets import timeseries
    import dask.dataframe

def main():
    output, cluster, number, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    shape = dict(memory_limit="1000MB", dashboard_address=None)
    if cluster == "rule":
        client = Client()
    elif cluster == "local":
        client = Client(LocalCluster(n_workers=number, threads_per_worker=1, **shape))
    else:
        from dask_jobqueue import SLURMCluster
        slurm = SLURMCluster(cores=1, processes=1, memory="1000MB", queue="cpu", walltime="00:10:00",
                             job_extra_directives=["--output=/dev/null"], scheduler_options={"dashboard": False})
        slurm.scale(number)
        client = Client(slurm)
    client.wait_for_workers(number)
    found = {"ready": time.monotonic() - began}
    da.ones(1000, chunks=500).sum().compute()
    found["first"] = time.monotonic() - began

    def cpu():
        of_workers = sum(client.run(time.process_time).values())
        # A plain script's scheduler is in its own process.
        of_scheduler = client.run_on_scheduler(time.process_time) if cluster == "rule" else 0
        return of_workers + time.process_time() + of_scheduler

    used, start = cpu(), time.monotonic()
    x = da.random.default_rng(1).random((size, size), chunks=1000)
    float((x @ x.T).std().compute())
    found |= {"array": time.monotonic() - start, "array, CPU time": cpu() - used}
    if frames:
        used, start = cpu(), time.monotonic()
        frame = timeseries("2000-01-01", f"2000-0{1 + size // 1000}-01", freq="5s", partition_freq="4D", seed=1)
        frame.groupby("id").agg({"x": "mean", "y": "std"}).compute()
        found |= {"dataframe": time.monotonic() - start, "dataframe, CPU time": cpu() - used}
    with open(output, "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    main()
"""

RULE = """
rule one:
    output: "found.json"
    resources: mem_mb={memory}, runtime=8, dask_workers={number}
    shell: "{python} script.py {{output}} rule {number} {size}"
"""

Found = Mapping[str, float]


def in_rule(number: int, size: int, directory: Path, *arguments: str, environment: Mapping[str, str]) -> Found:
    """One job that has the workers; with the time of the whole command."""
    rule = RULE.format(memory=MEMORY_MB, number=number, python=sys.executable, size=size)
    executor = ("--executor", "dask", "--jobs", "10", *arguments)
    timed = snakemake(rule, *executor, directory=directory, environment=environment, files={"script.py": SCRIPT})
    return json.loads((directory / "found.json").read_text()) | {"command": timed.wall_s}


def in_script(cluster: str, number: int, size: int, directory: Path, environment: Mapping[str, str]) -> Found:
    directory.mkdir()
    (directory / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "found.json", cluster, str(number), str(size)]
    began = time.monotonic()
    with (directory / "output.txt").open("wb") as file:
        process = subprocess.Popen(
            command, cwd=directory, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
        )
        with ending(process):
            code = process.wait(900)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{(directory / 'output.txt').read_text()[-3000:]}")
    return json.loads((directory / "found.json").read_text()) | {"command": time.monotonic() - began}


def medians(rounds: int, *ways: Callable[[], Found]) -> list[dict[str, float]]:
    """Of each way; one after the other in each round, so that what else the machine does meets all of them."""
    found = [[way() for way in ways] for _ in range(rounds)]
    return [
        {name: statistics.median(each[index][name] for each in found) for name in found[0][index]}
        for index in range(len(ways))
    ]


def local(directory: Path, workers: list[int], size: int, rounds: int) -> None:
    for number in workers:
        heading(f"{number} Dask workers of one thread on this machine")
        cores = ("--dask-worker-cores", str(number + 1))
        rule, plain = medians(
            rounds,
            lambda n=number, c=cores: in_rule(n, size, fresh(directory), *c, environment={}),  # type: ignore[misc]
            lambda n=number: in_script("local", n, size, fresh(directory), {}),  # type: ignore[misc]
        )
        ratio = rule["first"] / plain["first"]
        row("LocalCluster: to the first result", plain["first"], "s")
        row("rule: to the first result", rule["first"], "s", ratio, "at most 1.5", "rule to LocalCluster")
        for kind in [kind for kind in KINDS if kind in rule]:
            row(f"LocalCluster: {kind}", plain[kind], "s")
            row(f"rule: {kind}", rule[kind], "s", plain[kind] / rule[kind], "at least 0.95", "LocalCluster to rule")


def slurm(directory: Path, workers: list[int], size: int, rounds: int) -> None:
    from clusters.slurm import VirtualSlurm

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        cluster = VirtualSlurm(Path(name) / "slurm")
        cluster.up()
        environment = {"SLURM_CONF": os.fspath(cluster.conf)}
        environment["PATH"] = with_commands(Path(name) / "bin", cluster.conf)

        def quiet(way: Callable[[], Found]) -> Found:
            found = way()
            while cluster.queue():
                time.sleep(0.2)
            return found

        try:
            for number in workers:
                heading(f"{number} Dask workers of one core on a virtual Slurm of three nodes of two cores")
                pool = ("--dask-cluster", "slurm", "--dask-workers", "0-3", "--dask-worker-cores", "2")
                pool += ("--dask-worker-memory", "3GB", "--dask-walltime", "10m", "--dask-idle-timeout", "1")
                rule, plain = medians(
                    rounds,
                    lambda n=number, p=pool: quiet(  # type: ignore[misc]
                        lambda: in_rule(n, size, fresh(directory), *p, environment=environment)
                    ),
                    lambda n=number: quiet(lambda: in_script("slurm", n, size, fresh(directory), environment)),  # type: ignore[misc]
                )
                row("SLURMCluster: from the command to its end", plain["command"], "s")
                ratio = rule["command"] / plain["command"]
                row("rule: from the command to its end", rule["command"], "s", ratio, to="rule to SLURMCluster")
                for kind in [kind for kind in KINDS if kind in rule]:
                    row(f"SLURMCluster: {kind}", plain[kind], "s")
                    row(f"rule: {kind}", rule[kind], "s", plain[kind] / rule[kind], to="SLURMCluster to rule")
        finally:
            cluster.down()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--size", type=int, default=6000, help="rows of the array")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slurm", action="store_true", help="on a virtual Slurm instead")
    chosen = options.parse_args()
    if not (importlib.util.find_spec("pandas") and importlib.util.find_spec("pyarrow")):
        print("pandas and pyarrow are not installed, so dask.dataframe takes no part", file=sys.stderr)
    with scratch() as directory:
        (slurm if chosen.slurm else local)(directory, chosen.workers, chosen.size, chosen.rounds)


if __name__ == "__main__":
    main()
