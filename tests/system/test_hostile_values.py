"""Values that trip shells, argument parsers, file names and encodings: outputs are those of the local executor.

Hypothesis makes the values. A run of Snakemake costs seconds, so many of them go into one workflow, each
into a job of its own, which is run by the local executor and by this one in directories of the same name.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

#: Each with four values.
WARM_JOBS = 200
MANY_WARM_JOBS = 1000
COLD_JOBS = 12

#: What shells, format strings, YAML, globs and Snakemake's own argument syntax give a meaning.
FRAGMENTS = (
    *("a,b", "it's", '"', "'", "$(touch HACKED)", "`touch HACKED`", "${HOME}", "$HOME", ";", "; touch HACKED;", "&&"),
    *("|", ">", "<", "\\", "\\\\", "\\n", "\n", "\r", "\t", " ", "  ", "-", "--jobs", "-n", "=", ":", "::", "#", "%s"),
    *("%", "*", "?", "[a]", "(x)", "~", "!", "!!", "@", "^", "null", "true", "no", "1e3", "0x1f", "12:30:00", "{", "}"),
    *(
        "{{",
        "}}",
        "{x}",
        "{output}",
        "ü",
        "日本",
        "😀",
        "\u202e",
        "e\u0301",
        "\u00a0",
        "\u2028",
        "\x07",
        "\x1b[31m",
        "\x7f",
    ),
    *("<TBD>", "/bin/sh", "..", ".", "|| exit 9", "EOF", "\\'", "'\"'\"'", "r\rn", "+", ","),
)
WORDS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    st.text(st.sampled_from("ab ,;'\"\\$()-\n"), min_size=1, max_size=20),
    st.text(st.sampled_from("x,'é"), min_size=200, max_size=200),
)
#: Bytes as the operating system takes them; what is not UTF-8 is a lone surrogate in Python.
RAW = st.binary(min_size=1, max_size=20).filter(lambda data: b"\0" not in data).map(os.fsdecode)


def wildcard(value: str) -> str:
    """A value that can be part of one path, and that no normalisation of paths changes."""
    # Snakemake takes braces for wildcards of its own, and many repetitions for an endless recursion.
    value = re.sub(r"(.+?)\1{9,}", r"\1", value.replace("{", "").replace("}", ""), flags=re.DOTALL)
    while len(value.encode()) > 200:
        value = value[:-1]
    value = "/".join(part for part in value.split("/") if part not in {"", ".", ".."})
    return value or "empty"


@dataclass(frozen=True)
class Job:
    """The values of one job."""

    wildcard: str
    param: str
    raw_param: str
    environment: str


JOBS = st.builds(Job, WORDS.map(wildcard), WORDS, RAW, st.one_of(WORDS, RAW))


def made(count: int) -> list[Job]:
    """So many jobs with values, the same ones each time."""
    jobs: list[Job] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(JOBS)
    def collect(job: Job) -> None:
        jobs.append(job)

    collect()
    return jobs


SNAKEFILE = r"""
import json

with open("jobs.json") as file:
    JOBS = json.load(file)

wildcard_constraints:
    value="(?s:.+)",
    index="[0-9]+",

rule all:
    input: lambda wildcards: [f"out/{i}/{job['wildcard']}.txt" for i, job in enumerate(JOBS)]

rule show:
    output: "out/{index}/{value}.txt"
    log: "logs/{index}/{value}.log"
    params:
        given=lambda wildcards: JOBS[int(wildcards.index)]["param"],
        raw=lambda wildcards: JOBS[int(wildcards.index)]["raw_param"],
    shell:
        '''
        printf '%s\\0' {wildcards.value:q} {params.given:q} {params.raw:q} {output:q} > {output:q} 2> {log:q}
        printenv -0 HOSTILE_{wildcards.index} >> {output:q}
        '''
"""


@dataclass(frozen=True)
class Result:
    """What a run left, byte for byte."""

    code: int
    files: dict[bytes, bytes]
    text: str


def run_by(arguments: tuple[str, ...], directory: Path, snakefile: str, environment: dict[str, str]) -> Result:
    """Run the workflow in a directory that holds it already."""
    (directory / "Snakefile").write_text(snakefile)
    with (directory.parent / "output").open("wb+") as output:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *COMMON, *arguments],
            cwd=directory,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=280,
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
    files = {}
    for path in directory.rglob("*"):
        if ".snakemake" not in path.relative_to(directory).parts and path.is_file():
            files[os.fsencode(path.relative_to(directory))] = path.read_bytes()
    return Result(done.returncode, files, text)


COMMON = (
    *("--scheduler", "firstfit", "--max-jobs-per-timespan", "10000/1s", "--keep-going", "--latency-wait", "1"),
    *("--quiet", "rules", "progress", "host", "--cores", "2"),
)
LOCAL = ("--executor", "local")
DASK = ("--executor", "dask", "--jobs", "10000", "--dask-worker-cores", "2")


def both(
    tmp_path: Path, name: str, snakefile: str, prepare: Callable[[Path], dict[str, str]], *arguments: str
) -> tuple[Result, Result]:
    """The workflow by the local executor, and by this one."""
    results = []
    for where, chosen in (("locally", LOCAL), ("on-workers", (*DASK, *arguments))):
        directory = tmp_path / where / name
        directory.mkdir(parents=True)
        results.append(run_by(chosen, directory, snakefile, prepare(directory)))
    return results[0], results[1]


@pytest.mark.parametrize(
    ("start", "count"),
    [
        ("warm", WARM_JOBS),
        pytest.param("warm", MANY_WARM_JOBS, marks=pytest.mark.variant),
        pytest.param("cold", COLD_JOBS, marks=pytest.mark.variant),
    ],
)
def test_wildcards_params_and_environment(tmp_path: Path, start: str, count: int) -> None:
    """Every value arrives as it was: in wildcards, paths, parameters (also undecodable ones) and the environment."""
    jobs = made(count)
    assert len(jobs) == count

    def prepare(directory: Path) -> dict[str, str]:
        (directory / "jobs.json").write_text(json.dumps([vars(job) for job in jobs]))
        return {f"HOSTILE_{index}": job.environment for index, job in enumerate(jobs)}

    name = "it's $(touch HACKED); a \\ directory, ünï"
    expected, result = both(tmp_path, name, SNAKEFILE, prepare, "--dask-job-start", start)
    assert expected.code == 0, expected.text
    assert result.code == 0, result.text
    outputs = [path for path in expected.files if path.startswith(b"out/")]
    assert len(outputs) == count
    for path, content in expected.files.items():
        assert result.files.get(path) == content, f"{path!r} differs"
    assert set(result.files) == set(expected.files)
    for index, job in enumerate(jobs):
        path = f"out/{index}/{job.wildcard}.txt"
        values = (job.wildcard, job.param, job.raw_param, path, job.environment)
        assert result.files[os.fsencode(path)] == b"".join(os.fsencode(value) + b"\0" for value in values)


NAMES = (
    *("../up", "-n", "it's, a b", "new\nline", '$(touch HACKED)"', "a" * 200, "é" * 120, "😀" * 60, "/abs", ".", ".."),
    *("--jobs", "a:b=c", "100%s", "a\\b", ";x", "\x07\x1b[31m", "`touch HACKED`", "#x", "a/b", " ", "{x}"),
)

NAMED = r"""
import json

with open("names.json") as file:
    NAMES = json.load(file)

rule all:
    input: [f"out/{i}.txt" for i in range(len(NAMES))]

for i, given in enumerate(NAMES):
    rule:
        name: given
        output: f"out/{i}.txt"
        params: code=i % 2
        shell: "printf '%s' {rule:q} > {output}; test -e good || exit {params.code}"
"""


@pytest.mark.parametrize(("start", "count"), [("warm", len(NAMES)), pytest.param("cold", 6, marks=pytest.mark.variant)])
def test_rule_names(tmp_path: Path, start: str, count: int) -> None:
    """Names of rules become parts of log paths, keys and messages; every other job fails, so that its log stays."""

    def prepare(directory: Path) -> dict[str, str]:
        (directory / "names.json").write_text(json.dumps(NAMES[:count]))
        return {}

    expected, result = both(tmp_path, "work", NAMED, prepare, "--dask-job-start", start)
    assert (expected.code, result.code) == (1, 1), result.text
    assert result.files == expected.files
    assert {path for path in result.files if path.startswith(b"out/")} == {
        b"out/%d.txt" % index for index in range(0, count, 2)
    }
    logs = tmp_path / "on-workers" / "work" / ".snakemake" / "dask_logs"
    assert len(list(logs.glob("*/*.log"))) == count // 2
    assert len(list(tmp_path.rglob("*.log"))) == count // 2 + 2, "a log is elsewhere (Snakemake writes one itself)"
