"""Run pipelines of other people with their rules unchanged, and compare with Snakemake's local executor.

Each pipeline is cloned and checked out at the commit that its recipe names, data are made, and it runs three times:
with the local executor, with `--executor dask` on this machine, and with `--dask-cluster slurm` on a Slurm of virtual
nodes. What it made has to be the same each time. Its tools come from Debian instead of `conda:`. Takes minutes, and
needs the internet, or clones below `--address`.
"""

import argparse
import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [os.fspath(HERE), os.fspath(HERE.parent), os.fspath(HERE.parent.parent / "tests")]

from harness import UNLIMITED, heading, row, scratch  # noqa: E402
from recipes import WRAPPERS, Recipe  # noqa: E402

NAMES = ("mapping", "counting", "places")
ADDRESS = "https://github.com"
SLURM = ("--dask-cluster", "slurm", "--dask-worker-cores", "2", "--dask-worker-memory", "3 GB")
SLURM += ("--dask-workers", "0-3", "--dask-walltime", "30m")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run bench pipelines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all unless given")
    parser.add_argument("--address", default=ADDRESS, help="where OWNER/NAME of each repository lies (%(default)s)")
    parser.add_argument("--without-slurm", action="store_true", help="on this machine alone")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no pipeline {unknown[0]}; there are {', '.join(NAMES)}")
    differing = 0
    with scratch() as directory:
        for name in chosen.names or NAMES:
            recipe: Recipe = importlib.import_module(name).RECIPE
            heading(f"{recipe.repository} at {recipe.commit[:12]}: {recipe.about}")
            differing += one(recipe, directory / name, chosen.address, slurm=not chosen.without_slurm)
    return 1 if differing else 0


def one(recipe: Recipe, directory: Path, address: str, *, slurm: bool) -> int:
    """Run a pipeline each way; the number of files that are not as the local executor made them."""
    clone = cloned(recipe.repository, directory, address)
    options = ["--default-resources", *recipe.resources, "--rerun-triggers", "mtime"]
    if recipe.wrappers:
        options += ["--wrapper-prefix", f"git+file://{cloned(WRAPPERS, directory, address)}"]
    cores = str(len(os.sched_getaffinity(0)))
    ways = {
        "local executor": ("--cores", cores),
        "dask, this machine": ("--executor", "dask", "--jobs", "500"),
    }
    if slurm:
        # Rules ask for more threads than a node has.
        few = ("--executor", "dask", "--jobs", "500", "--cores", "2")
        ways["dask, Slurm"] = (*few, *SLURM)
    made: dict[str, dict[str, bytes]] = {}
    differing = 0
    for way, arguments in ways.items():
        checkout = directory / way.replace(", ", "-").replace(" ", "-")
        git("clone", "--quiet", "--shared", "--no-checkout", clone, checkout)
        git("-C", checkout, "checkout", "--quiet", recipe.commit, "--", *recipe.rules, *recipe.further)
        recipe.prepare(checkout)
        command = [
            sys.executable,
            "-m",
            "snakemake",
            *UNLIMITED,
            *arguments,
            *options,
            *recipe.arguments,
            "--",
            *recipe.targets,
        ]
        with slurm_for(way, directory / "slurm") as environment:
            wall_s, text = timed(command, checkout, environment)
        made[way] = results(recipe, checkout)
        jobs = text.count("\nFinished jobid: ") or text.count("Finished jobid")
        first = made["local executor"]
        other = sorted(name for name in first.keys() | made[way].keys() if first.get(name) != made[way].get(name))
        differing += len(other)
        row(f"{way}: {jobs} jobs, {len(made[way])} files compared", wall_s, "s")
        if other:
            print(f"  not as the local executor made them: {', '.join(other[:10])}")
        git("-C", checkout, "diff", "--exit-code", recipe.commit, "--", *recipe.rules)
    if recipe.left_out:
        print(f"  left out: {recipe.left_out}")
    return differing


def git(*arguments: str | Path) -> None:
    subprocess.run(["git", *map(os.fspath, arguments)], check=True)


def cloned(repository: str, directory: Path, address: str) -> Path:
    """A clone of a repository, made once."""
    place = directory.parent / "clones" / repository
    if not place.exists():
        print(f"cloning {repository}", flush=True)
        git("clone", "--quiet", "--shared", "--no-checkout", f"{address}/{repository}", place)
    return place


@contextlib.contextmanager
def slurm_for(way: str, directory: Path) -> Iterator[dict[str, str]]:
    """The variables with which a run finds its Slurm, where it needs one."""
    if not way.endswith("Slurm"):
        yield {}
        return
    from clusters.slurm import VirtualSlurm

    cluster = VirtualSlurm(directory)
    cluster.up()
    try:
        yield {"SLURM_CONF": os.fspath(cluster.conf)}
    finally:
        cluster.down()


def timed(command: Sequence[str], checkout: Path, environment: Mapping[str, str]) -> tuple[float, str]:
    """Wall time and output of a run; RuntimeError with its end where it fails."""
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, **environment}, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-5000:]}")
    return time.monotonic() - began, done.stdout


def results(recipe: Recipe, checkout: Path) -> dict[str, bytes]:
    """What is compared, by its path."""
    return {
        os.fspath(path.relative_to(checkout)): read(path)
        for pattern, read in recipe.compared.items()
        for path in checkout.glob(pattern)
    }


if __name__ == "__main__":
    sys.exit(main())
