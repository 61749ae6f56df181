"""Rules with software of their own: environment modules, conda, containers, R, notebooks and wrappers.

`./run tests software` prepares what these need. Debian's environment-modules and lmod, R and Jupyter are the real ones;
conda and apptainer are stand-ins for their commands (`software/conda`, `software/apptainer`), since neither is to be
had everywhere. Snakemake's local executor in the same environment says what is right.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clusters.slurm import VirtualSlurm
from running import RUN_S, snakemake

pytestmark = [pytest.mark.software, pytest.mark.timeout(900)]

HERE = Path(__file__).parent / "software"
TOOLS = Path(sys.prefix, "software")  # where ./run puts what it does not install in the system
INITS = {
    "environment-modules": TOOLS / "environment-modules" / "usr/share/modules/init/bash",
    "lmod": Path("/usr/share/lmod/lmod/init/bash"),
}
SLURM = ("--dask-cluster", "slurm", "--dask-workers", "0-2", "--dask-worker-cores", "2")
SLURM += ("--dask-worker-memory", "2 GB", "--dask-walltime", "30m")
JOBS = 12


def with_modules(kind: str, directory: Path) -> dict[str, str]:
    """The variables of a shell in which the command `module` is there, and one module is loaded."""
    init = INITS[kind]
    assert init.exists(), "prepare this with ./run tests software"
    for name, lines in {
        "greet/2.0": f"prepend-path PATH {directory}/greet\nsetenv GREET_HOME /opt/greet",
        "base/1.0": "setenv BASE_HOME /opt/base",
    }.items():
        file = directory / "modulefiles" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#%Module1.0\n{lines}\n")
    program = directory / "greet" / "greet"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    shell = f"source {init} && module use {directory}/modulefiles && module load base/1.0 && env -0"
    told = subprocess.run(["bash", "--norc", "-c", shell], check=True, capture_output=True, text=True).stdout
    return dict(each.split("=", 1) for each in told.rstrip("\0").split("\0"))


def with_commands(directory: Path) -> dict[str, str]:
    """The variables by which the stand-ins are found, with an image for containers."""
    for place, name in (("bin", "conda"), ("bin", "activate"), ("apptainer", "apptainer")):
        (directory / place).mkdir(exist_ok=True)
        shutil.copy(HERE / name, directory / place / name)
    image = directory / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc" / "name").write_text("a container\n")
    # The interpreter, and the one of which this environment is made.
    own = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix)}
    (image / "host").write_text("".join(f"{path}\n" for path in sorted(own)))
    path = [
        directory / "bin",
        directory / "apptainer",
        sys.prefix + "/bin",
        os.environ["PATH"],
        TOOLS / "jupyter" / "bin",
    ]
    return {
        "PATH": os.pathsep.join(map(os.fspath, path)),
        "STAND_IN_IMAGE": os.fspath(image),
        "STAND_IN_PYTHON": sys.executable,
    }


def wrappers(directory: Path) -> str:
    """The prefix of a wrapper that is a file on this machine."""
    place = directory / "wrappers" / "v1.2.3" / "say"
    place.mkdir(parents=True)
    (place / "wrapper.py").write_text(
        "from snakemake.shell import shell\nshell('echo {snakemake.params.word} > {snakemake.output}')\n"
    )
    (place / "environment.yaml").write_text("channels: [nodefaults]\ndependencies:\n  - align=1.4\n")
    return f"file://{directory}/wrappers/"


def made(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.glob("*.txt") if path.name != "output.txt"}


@pytest.fixture(params=sorted(INITS))
def deployed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An environment with all of it; the options for Snakemake."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, value in with_modules(request.param, tools).items():
        monkeypatch.setenv(name, value)
    for name, value in with_commands(tools).items():
        monkeypatch.setenv(name, value)
    options = ["--sdm", "conda", "apptainer", "env-modules", "--conda-prefix", os.fspath(tmp_path / "envs")]
    options += ["--wrapper-prefix", wrappers(tools)]
    return [*options, "--default-resources", "mem_mb=300", "runtime=5"]


def fresh(directory: Path) -> tuple[Path, str]:
    shutil.copytree(HERE / "workflow", directory)
    return directory, (directory / "Snakefile").read_text()


def test_on_slurm_as_locally(slurm: VirtualSlurm, deployed: list[str], tmp_path: Path) -> None:
    """Warm and cold, in allocations: every rule finds its software there, and makes what it makes locally.

    Then without a cluster: what is made can be touched, and a report of it written.
    """
    with snakemake(*fresh(tmp_path / "local"), *deployed, executor="local") as run:
        assert run.wait(RUN_S) == 0, run.output
    right = made(tmp_path / "local")
    assert right["modules.txt"] == "hello\n/opt/greet purged greet/2.0\n"
    assert right["bare.txt"] == "none\n/opt/base base/1.0\nbase/1.0\n"
    assert right["conda.txt"] == "align 1.4\n1.4\nnone\n"
    assert right["conda-script.txt"] == "1.4 {'a': [1, None]} True\n"
    assert right["conda-r.txt"] == "align 1.4\nconda_r\n"
    assert right["container.txt"] == "a container\nnone\n"
    assert right["container-script.txt"] == "a container\ncontainer_script\n"
    assert right["r.txt"] == "6 2\n"
    assert right["notebook.txt"] == "6 2\nnotebook"
    assert right["wrapper.txt"] == "wrapped\n"
    for start in ("warm", "cold"):
        directory, snakefile = fresh(tmp_path / start)
        with snakemake(directory, snakefile, *deployed, *SLURM, "--dask-job-start", start) as run:
            assert run.wait(RUN_S) == 0, run.output
            assert made(directory) == right
            begun = run.events("job-started")
            assert len(begun) == JOBS
            assert {event["start"] for event in begun} == {start}
            if start == "warm":
                depths = {event["key"].split("-")[0]: event["start_depth"] for event in begun}
                assert {depths["joined"], depths["r"], depths["bare"]} == {3}
                assert {depths["conda"], depths["conda_r"], depths["container"], depths["modules"]} == {2}
                assert {depths["wrapper"], depths["notebook"]} == {2}
    with snakemake(directory, snakefile, *deployed, *SLURM, "--touch") as run:
        assert run.wait(RUN_S) == 0, run.output
    with snakemake(directory, snakefile, *deployed, *SLURM, "--report", "report.html") as run:
        assert run.wait(RUN_S) == 0, run.output
        assert "joined" in (directory / "report.html").read_text()
    assert made(directory) == right
    assert len(list(directory.glob(".snakemake/dask/*.events.jsonl"))) == 1, "neither brought up a cluster"


BATCHES = """
rule all:
    input: expand("parts/{i}.txt", i=range(6))

rule part:
    output: "parts/{i}.txt"
    shell: "echo {wildcards.i} > {output}"
"""


def test_batches(slurm: VirtualSlurm, tmp_path: Path) -> None:
    """`--batch` runs a part of the workflow at a time."""
    for number, parts in ((1, 3), (2, 6)):
        with snakemake(tmp_path, BATCHES, *SLURM, "--batch", f"all={number}/2") as run:
            assert run.wait(RUN_S) == 0, run.output
        assert len(list(tmp_path.glob("parts/*.txt"))) == parts
