"""A job cannot tell how it was started: the same jobs cold and at each warm depth."""

import json
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from system.warm_harness import Ended, Warm, plan, run_cold

#: How far the warm process has got: it has imported Snakemake, knows the rules, has the jobs' graph.
DEPTHS = (*(pytest.param(depth, marks=pytest.mark.variant) for depth in (1, 2)), 3)

# Some thirty cold jobs take minutes on a busy machine.
pytestmark = pytest.mark.timeout(1500)

#: What a failed job's log must say, cold or warm.
WORDS = {
    "failing": [
        "Error in rule failing",
        "CalledProcessError",
        "exit status 7",
        "(command exited with non-zero exit code)",
    ],
    "failing_run": ["Error in rule failing_run", "ValueError", "JOB: said no", "Snakefile"],
    "missing": ["MissingOutputException", "missing.txt (missing locally"],
    "lambda_error": ["InputFunctionException", "ZeroDivisionError"],
    "ensured": ["ensured.txt"],
    "shadow_failing": ["Error in rule shadow_failing", "exit status 5"],
    "exit": ["Error in rule exit", "SIGKILL"],
    "vandal": ["MissingOutputException"],  # it leaves its directory
}


@dataclass
class Run:
    """All jobs, started in one way."""

    ended: dict[str, Ended]
    files: dict[str, tuple[str, int, bytes]]
    workdir: Path


def lay_out(workdir: Path) -> None:
    shutil.copytree(Path(__file__).parent / "workflows/warm", workdir)
    (workdir / ".logs").mkdir()
    (workdir / "in.txt").write_text("input\n")
    (workdir / "in2.txt").write_text("more input\n")


def snapshot(workdir: Path) -> dict[str, tuple[str, int, bytes]]:
    """Type, mode and content of every file, logs of the harness and cached bytecode apart."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if name.startswith((".logs", ".snakemake/log", ".snakemake/locks")) or "__pycache__" in name:
            continue
        status = path.lstat()
        kind = "directory" if path.is_dir() else "file"
        found[name] = kind, stat.S_IMODE(status.st_mode), b"" if path.is_dir() else path.read_bytes()
    return found


class Runs(dict[int, Run]):
    """By depth, when asked for; 0: cold. Each in a directory of its own that has the same path while the jobs run."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self._base = base
        self._workdir = base / "work dir"
        lay_out(self._workdir)
        self._setup, specs = plan(self._workdir, "--latency-wait", "1")
        self._specs = [replace(spec, environment=(("CUDA_VISIBLE_DEVICES", "3"), ("SHLVL", None))) for spec in specs]
        self._specs.sort(key=lambda spec: spec.name != "vandal")
        shutil.rmtree(self._workdir)

    def __missing__(self, depth: int) -> Run:
        lay_out(self._workdir)
        if depth == 0:
            ended = {spec.name: run_cold(self._setup, spec) for spec in self._specs}
        else:
            with Warm(replace(self._setup, warm_depth=depth)) as warm:
                assert warm.depth == depth
                ended = {spec.name: warm.run(spec) for spec in self._specs}
                assert warm.close() == 0
        kept = self._base / str(depth)
        files = snapshot(self._workdir)
        self._workdir.rename(kept)
        self[depth] = Run(ended, files, kept)
        return self[depth]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("same"))


def own_lines(ended: Ended) -> list[str]:
    """What the job itself wrote, in any order: stdout is buffered, stderr is not."""
    return sorted(line for line in ended.log.splitlines() if line.startswith("JOB:"))


@pytest.mark.parametrize("depth", DEPTHS)
def test_jobs_end_alike(runs: Runs, depth: int) -> None:
    """Every job ends with the exit code that it has when started cold."""
    assert {name: ended.code for name, ended in runs[depth].ended.items()} == {
        name: ended.code for name, ended in runs[0].ended.items()
    }


def test_failures_are_failures(runs: Runs) -> None:
    """The jobs that are made to fail do so, and no others."""
    assert {name for name, ended in runs[0].ended.items() if ended.code != 0} == set(WORDS)


@pytest.mark.parametrize("depth", DEPTHS)
def test_files_are_alike(runs: Runs, depth: int) -> None:
    """The same files with the same modes and contents are left, Snakemake's metadata among them."""
    differing = {"state.json", "bench.tsv", "shell_environment"}
    cold = {name: file for name, file in runs[0].files.items() if name not in differing}
    warm = {name: file for name, file in runs[depth].files.items() if name not in differing}
    assert warm == cold


@pytest.mark.parametrize("depth", DEPTHS)
def test_benchmarks_have_the_same_columns(runs: Runs, depth: int) -> None:
    """A benchmark file has a line for each repeat, with the same columns."""
    cold, warm = ((runs[d].workdir / "bench.tsv").read_text().splitlines() for d in (0, depth))
    assert len(warm) == len(cold) == 3
    assert warm[0] == cold[0]
    assert [len(line.split("\t")) for line in warm] == [len(line.split("\t")) for line in cold]


@pytest.mark.parametrize("depth", DEPTHS)
def test_logs_hold_what_jobs_write(runs: Runs, depth: int) -> None:
    """A job's own lines are in its log, those of its exit functions and late threads too."""
    cold = {name: own_lines(ended) for name, ended in runs[0].ended.items()}
    assert {name: own_lines(ended) for name, ended in runs[depth].ended.items()} == cold
    assert cold["vandal"] == ["JOB: exit function", "JOB: thread"]


@pytest.mark.parametrize("depth", [0, *DEPTHS])
@pytest.mark.parametrize("name", WORDS)
def test_logs_say_why_a_job_failed(runs: Runs, depth: int, name: str) -> None:
    """Snakemake's own words for a failure are in the log."""
    log = runs[depth].ended[name].log
    assert [words for words in WORDS[name] if words not in log] == []


@pytest.mark.parametrize("depth", DEPTHS)
def test_logs_describe_the_job(runs: Runs, depth: int) -> None:
    """The block with which Snakemake announces a job is the same, but for its number."""
    for name in ("params", "resources", "script", "late", "bench"):
        cold, warm = (announcement(runs[d].ended[name].log, name) for d in (0, depth))
        assert warm == cold
    assert "greeting shell.txt" in runs[depth].ended["shell"].log


def announcement(log: str, name: str) -> list[str]:
    lines = log.splitlines()
    start = lines.index(f"localrule {name}:")
    block = []
    for line in lines[start + 1 :]:
        if not line.startswith("    "):
            break
        if "resources:" in line:  # in the order of a set
            head, _, items = line.partition(":")
            line = head + str(sorted(items.split(", ")))  # noqa: PLW2901
        if "jobid:" not in line:
            block.append(line)
    return block


@pytest.mark.parametrize("depth", DEPTHS)
def test_state_is_alike(runs: Runs, depth: int) -> None:
    """Environment, arguments, limits, signals and streams are a cold job's, also after a job that changed them."""
    cold, warm = (json.loads(runs[d].files["state.json"][2]) for d in (0, depth))
    for state in (cold, warm):
        for volatile in ("SHLVL", "_"):
            state["environment"].pop(volatile, None)
    assert warm == cold
    assert cold["environment"]["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("depth", DEPTHS)
def test_environment_of_a_shell_is_alike(runs: Runs, depth: int) -> None:
    """A shell command sees the same variables."""
    cold, warm = ((runs[d].workdir / "shell_environment").read_text().splitlines() for d in (0, depth))
    assert warm == cold
