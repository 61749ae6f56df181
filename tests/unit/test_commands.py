"""The command `snakemake-dask`: which run, which jobs, and what it prints."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.cli.commands import main
from snakemake_executor_plugin_dask.cli.explain import explain
from snakemake_executor_plugin_dask.cli.jobtable import Choice, chosen, text_table
from snakemake_executor_plugin_dask.model.jobs import GroupMember
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.observe.events import EventLog
from snakemake_executor_plugin_dask.observe.model import RunModel

from .test_events import at, ended, joined, placed, queued

POOLS = [
    {"name": "cpu", "cluster": "slurm", "workers_max": 2, "cores": 4, "memory_mb": 8300},
    {"name": "gpu", "cluster": "slurm", "workers_max": 1, "cores": 4, "memory_mb": 8300, "gpus": 1, "slurm": None},
]


def events(run: str = "abc1", *, over: bool = True) -> list[dict]:
    """Three samples aligned, one of them not; a group of two; a job that waits or was not started."""
    members = [GroupMember("sort", "7", (("sample", "skin"),)), GroupMember("index", "8", (("sample", "skin"),))]
    named = [{"rule": each.rule, "jobid": each.jobid, "wildcards": dict(each.wildcards)} for each in members]
    found = [at(0, "run-started", run_id=run, options={"pools": POOLS}), joined(0)]
    for number, sample in enumerate(("liver", "kidney", "skin"), 1):
        found += [
            queued(1, number, "align", memory_mb=1000) | {"wildcards": {"sample": sample, "lane": "1"}},
            placed(2, number, rule="align", memory_mb=1000),
        ]
        found.append(
            ended(
                2 + number, number, rule="align", status="failed" if sample == "kidney" else "succeeded",
                started=2.0, ended=2.0 + number, peak_memory_mb=100.0 * number, host="n1",
                log_tail="no reads" if sample == "kidney" else "", log_path=f"/nowhere/{sample}.log",
            )
        )  # fmt: skip
    found += [
        queued(1, 9, "pair") | {"jobid": "8b9cf7ee-2e57", "members": named, "group": True},
        placed(2, 9, rule="pair"),
    ]
    found += [queued(1, 10, "merge", cores=16, memory_mb=2000), queued(1, 11, "late", cores=4, memory_mb=2000)]
    found[-2]["pool"] = found[-1]["pool"] = "cpu"
    if over:
        found += [
            ended(9, 9, rule="pair", started=2.0, ended=9.0),
            at(9, "job-dropped", keys=["merge-run-10-1.1", "late-run-11-1.1"]),
            at(10, "run-ended"),
        ]
    return found


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two runs, of which `abc1` wrote last."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".snakemake" / "dask"
    folder.mkdir(mode=0o700, parents=True)
    write(folder / "old0.events.jsonl", [at(0, "run-started", run_id="old0"), at(1, "run-ended")])
    os.utime(folder / "old0.events.jsonl", (1, 1))
    write(folder / "abc1.events.jsonl", events())
    return folder


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines))


def test_the_script_and_the_module_are_one() -> None:
    """`snakemake-dask` is installed, and `python -m` of the package is the same; neither imports Dask."""
    (script,) = entry_points(group="console_scripts", name="snakemake-dask")
    assert script.load() is main
    module = ["-m", "snakemake_executor_plugin_dask", "--help"]
    done = subprocess.run([sys.executable, "-X", "importtime", *module], capture_output=True, text=True, check=True)
    assert "explain" in done.stdout
    assert "cli.commands" in done.stderr
    assert not re.search(r"\| +(distributed|dask|snakemake)$", done.stderr, re.MULTILINE)


def test_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with how it ended, the newest last; also one that was killed, and one that lives."""
    write(runs / "killed.events.jsonl", events("killed", over=False))
    write(runs / "lives.events.jsonl", events("lives", over=False))
    (runs / "lives").mkdir(mode=0o700)
    holder = state.Held(runs / "lives")
    try:
        assert main(["runs"]) == 0
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
        assert main(["jobs", "lives", "--state", "waiting"]) == 0
        assert re.search(r" \d+d\d+h", capsys.readouterr().out), "what goes on has come to this moment"
    finally:
        holder.release()
    assert list(lines)[:3] == ["RUN", "old0", "abc1"]
    assert " well " in lines["old0"]
    assert " with failed jobs " in lines["abc1"]
    assert " was killed " in lines["killed"]
    assert " still runs " in lines["lives"]
    assert main(["runs", "--format", "json"]) == 0
    assert [row["failed"] for row in json.loads(capsys.readouterr().out)] == [0, 1, 1, 1]


def test_runs_in_a_directory_of_logs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As for other commands, the directory may be the one that holds the logs."""
    assert main(["runs", str(runs), "--format", "json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["old0", "abc1"]


def test_which_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest unless another is named: by its name, its first letters, its log or its directory."""
    for named, run in (
        ((), "abc1"), (("old0",), "old0"), (("ol",), "old0"),
        ((str(runs / "old0.events.jsonl"),), "old0"), ((".",), "abc1"),
    ):  # fmt: skip
        assert main(["status", *named]) == 0
        assert f"Run {run}, ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "none"], "There is no run none in this directory"),
        (["status", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory."),
        (["explain", "99"], "Run abc1 has no job 99"),
        (
            ["explain", "align"],
            "3 jobs match align: give the number of one of them (1: align (sample=liver, lane=1), succeeded; ",
        ),
        (["jobs", "failed"], "There is no run failed; `snakemake-dask jobs --state failed` lists jobs in that state."),
        (["log", "late"], "Job 11 has not been started"),
        (
            ["log", "1"],
            "The log of job 1 was removed because it succeeded; --dask-keep-successful-logs keeps such logs.",
        ),
        (["report", "-o", "x.pdf"], "No report can be written to x.pdf: the file's ending"),
        (["jobs", "--state", "ill"], "Argument -s/--state: invalid choice: 'ill'"),
        (["walk"], "Argument COMMAND: invalid choice: 'walk'"),
    ],
)
def test_complaints_are_one_sentence(
    arguments: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go to standard error, with exit code 1."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what was looked for."""
    monkeypatch.chdir(tmp_path)
    for command in ("runs", "status", "jobs", "report", "events"):
        assert main([command]) == 1
        assert capsys.readouterr().err.startswith("There is no event log of a run in this directory")


@pytest.mark.parametrize(
    ("choice", "jobs"),
    [
        (Choice(), ["1", "2", "3", "8b9cf7ee-2e57", "10", "11"]),
        (Choice(rules=("al*",)), ["1", "2", "3"]),
        (Choice(rules=("sort",)), ["8b9cf7ee-2e57"]),
        (Choice(wildcards=("sample=skin",)), ["3", "8b9cf7ee-2e57"]),
        (Choice(wildcards=("sk*", "lane=1")), ["3"]),
        (Choice(states=("failed",)), ["2"]),
        (Choice(states=("failed", "dropped")), ["2", "10", "11"]),
        (Choice(slowest=2), ["8b9cf7ee-2e57", "3"]),
        (Choice(largest=1), ["3"]),
        (Choice(wasteful=1), ["1"]),
    ],
)
def test_which_jobs(choice: Choice, jobs: list[str]) -> None:
    """By rule, wildcard and state, and the most of what was measured."""
    assert [attempt.jobid for attempt in chosen(RunModel(events()), choice)] == jobs


@pytest.mark.parametrize("width", [40, 60, 80, 160, None])
def test_a_table_fits_its_terminal(width: int | None) -> None:
    """What matters least goes first; which job, and how it ended, stay."""
    model = RunModel(events())
    lines = text_table(model, chosen(model, Choice()), width=width).splitlines()
    assert len(lines) == 7
    assert width is None or max(map(len, lines)) <= width
    assert "sample=" in lines[1]
    assert any("failed" in line for line in lines)
    if width is None or width == 160:
        assert "sort (sample=skin), index (sample=skin)" in lines[4]


def test_jobs_as_data(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TSV and JSON hold the same jobs, with their wildcards."""
    assert main(["jobs", "--state", "failed", "--format", "json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["rule"], job["wildcards"], job["status"]) == ("align", {"sample": "kidney", "lane": "1"}, "failed")
    assert main(["jobs", "--state", "failed", "--format", "tsv"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert dict(zip(head.split("\t"), line.split("\t"), strict=True))["wildcards"] == "sample=kidney, lane=1"


def test_explain_and_log(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed job by the value of a wildcard; the end of its log where the file is gone."""
    assert main(["explain", "kidney"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Job 2: align (sample=kidney, lane=1), which asks for 2 cores, mem_mb=1000.\n")
    assert "Attempt 1: failed after 2s on worker cpu-0 (host n1)" in text
    assert main(["log", "kidney"]) == 0
    assert capsys.readouterr().out == "no reads\n"
    assert main(["log", "kidney", "--path"]) == 0
    assert capsys.readouterr().out == "/nowhere/kidney.log\n"


def test_explain_a_job_that_waits(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pool by pool: what it can never hold, and what the worker with most room lacks now."""
    write(runs / "new.events.jsonl", events(over=False))
    assert main(["explain", "merge", "new"]) == 0
    text = capsys.readouterr().out
    assert "\nPool cpu (it waits in this one): can never hold it: 16 cores is more than the 4 of a worker" in text
    assert main(["explain", "11", "new"]) == 0
    text = capsys.readouterr().out
    assert "Pool cpu (it waits in this one): the worker with most room, cpu-0, has 2 of 4 cores free." in text
    assert "Pool gpu: no worker is there." in text


def test_why() -> None:
    """The table says why jobs failed and what others wait for, also where it is narrow; empty columns go."""
    lines = events(over=False)
    failed = next(each for each in lines if (each.get("outcome") or {}).get("status") == "failed")
    logs = [["logs/a.log", "reading\nno read has a mate\n\n"]]
    failed["outcome"] |= {"detail": "its command failed with exit code 3", "rule_logs": logs}
    model = RunModel(
        [*lines, at(9, "waiting", blockers=[{"pool": "cpu", "jobs": 2, "what": "cores", "rules": ["late"]}])]
    )
    assert "no read has" in text_table(model, chosen(model, Choice(states=("failed",))), width=70)
    table = text_table(model, chosen(model, Choice(states=("failed",))), width=100)
    assert "no read has a mate (its command failed with exit code 3)" in table
    assert "HOST" not in table
    table = text_table(model, chosen(model, Choice(states=("waiting",))), width=100)
    assert "waits for cores in pool cpu" in table
    assert not {"RAN", "PEAK", "CPU"} & set(table.split()), "nothing is known of these"
    model.apply(at(9, "allocation-submitted", worker="cpu-7", pool="cpu", allocation="8"))
    model.apply(at(9, "allocation-waiting", worker="cpu-7", pool="cpu", reason="Priority", expected=None))
    table = text_table(model, chosen(model, Choice(states=("waiting",))), width=100)
    assert "waits for cores in pool cpu (queued: Priority)" in table
    failed_job = [each for each in model.attempts.values() if each.status == "failed"]
    told = explain(model, failed_job, lines, 10.0)
    assert "The last lines of logs/a.log:\n    reading\n    no read has a mate\n" in told
    assert "no reads" not in told, "the rule's own log says it"


def test_every_pool_and_request_is_read_back(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the event log holds of them is enough to say why a job waits."""
    log = EventLog(runs / "full.events.jsonl", clock=time.time)
    log.write("run-started", run_id="full", options={"pools": (Pool("p", "slurm", resources=(("licences", 2),)),)})
    request = Request(1, extra=(("licences", 3),), slurm=(("qos", "long"),))
    log.write("job-queued", key="a-full-1-1.1", rule="a", jobid="1", attempt=1, request=request, pool="p")
    log.close()
    assert main(["explain", "1", "full"]) == 0
    assert "Pool p (it waits in this one): can never hold it: licences=3 is more than " in capsys.readouterr().out


def test_explain_a_job_that_names_its_pool(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the other pools nothing is said that would let one hope for them."""
    lines = events(over=False)
    next(line for line in lines if line.get("jobid") == "11" and line["kind"] == "job-queued")["request"]["pool"] = (
        "cpu"
    )
    write(runs / "new.events.jsonl", lines)
    assert main(["explain", "11", "new"]) == 0
    text = capsys.readouterr().out
    assert "Pool cpu (it waits in this one): the worker with most room" in text
    assert "Pool gpu: is not the one that dask_pool names." in text


def test_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written here, under the run's name, and its name is printed."""
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "dask-abc1.html\n"
    assert "sample=kidney" in Path("dask-abc1.html").read_text()
    for name in ("later.html", "later.tsv", "later.json"):
        assert main(["report", "-o", name]) == 0
        assert Path(name).stat().st_size > 0


def test_events_are_followed_to_the_end_of_the_run(runs: Path) -> None:
    """What is in the log, then each event as it is written; it ends with the run, or where its process is gone."""
    lines = [f"{json.dumps(event, separators=(',', ':'))}\n" for event in events()]
    path = runs / "live.events.jsonl"
    path.write_text("".join(lines[:3]))
    (runs / "live").mkdir(mode=0o700)
    holder = state.Held(runs / "live")
    command = [sys.executable, "-m", "snakemake_executor_plugin_dask", "events", "--follow", "live"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == lines[:3]
        with path.open("a") as stream:
            stream.write("".join(lines[3:])[:-10])
            stream.flush()
            seen = [process.stdout.readline() for _ in lines[3:-1]]
            stream.write("".join(lines[3:])[-10:])
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert seen + process.stdout.readlines() == lines[3:]
        assert process.wait() == 0
        timer.cancel()
    holder.release()
    path.write_text("".join(lines[:3]))
    # Another process takes the run's directory, and is gone without a word.
    take = f"from pathlib import Path; from {state.__name__} import Held; Held(Path({str(runs / 'live')!r}))"
    subprocess.run([sys.executable, "-c", take], check=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "".join(lines[:3])


def test_a_reader_that_has_enough(runs: Path) -> None:
    """`snakemake-dask events | head -1` ends quietly."""
    text = f"{sys.executable} -m snakemake_executor_plugin_dask jobs | head -1; exit ${{PIPESTATUS[0]}}"
    write(runs / "long.events.jsonl", [at(0, "run-started", run_id="long"), *(queued(0, n) for n in range(5000))])
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
