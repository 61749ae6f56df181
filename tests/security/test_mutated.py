"""Damaged and invented texts where a run reads: its own event log and records, batch systems' answers, jobs' logs.

Two hundred of each kind, the same ones each time; SNAKEMAKE_DASK_TEST_MUTATIONS names another number. None ends the
reader, and none is believed for more than it says.
"""

import contextlib
import io
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_dask.batch.allocations import RECORD, Record
from snakemake_executor_plugin_dask.batch.answers import look
from snakemake_executor_plugin_dask.cli.commands import main
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS
from snakemake_executor_plugin_dask.node.logs import command_end, tail
from snakemake_executor_plugin_dask.observe.events import read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import snapshot
from snakemake_executor_plugin_dask.observe.report import write_report
from snakemake_executor_plugin_dask.observe.status import table

COUNT = int(os.environ.get("SNAKEMAKE_DASK_TEST_MUTATIONS", "200"))
_REQUEST = {"cores": 2, "memory_mb": 1000, "runtime_s": 60.0, "gpus": 0, "nodes": None}
_FACTS = {"name": "cpu-0", "host": "n1", "pid": 1, "cores": 4, "memory_mb": 8000, "devices": ["0"], "hosts": []}
_OUTCOME = {
    "key": "a-run-1-1.1", "status": "failed", "host": "n1", "pid": 7, "started": 4.0, "ended": 9.0, "cpu_s": 1.0,
    "peak_memory_mb": 12.5, "exit_code": 1, "signal": None, "detail": "exit code 1", "log_path": "/w/l",
    "log_tail": "x",
}  # fmt: skip
_BLOCKER = {
    "pool": "cpu",
    "names": ["a"],
    "count": 3,
    "since": 1.0,
    "short": ["cores"],
    "what": "cores",
    "frees_s": 9.0,
}
EVENTS: list[dict[str, Any]] = [
    {"t": 1.0, "kind": "run-started", "run_id": "r", "host": "h", "workdir": "/w", "versions": {"snakemake": "9"},
     "options": {"pools": [{"name": "cpu", "cluster": "slurm", "workers_max": 2, "cores": 4, "memory_mb": 8000}]}},
    {"t": 1.1, "kind": "job-queued", "key": "a-run-1-1.1", "rule": "a", "jobid": "1", "request": _REQUEST},
    {"t": 1.1, "kind": "job-queued", "key": "b-run-2-1.1", "rule": "b", "jobid": "2", "request": _REQUEST},
    {"t": 1.2, "kind": "waiting", "blockers": [_BLOCKER]},
    {"t": 1.3, "kind": "allocation-submitted", "worker": "cpu-0", "pool": "cpu", "allocation": "12"},
    {"t": 1.4, "kind": "allocation-waiting", "worker": "cpu-0", "reason": "Priority"},
    {"t": 2.0, "kind": "allocation-running", "worker": "cpu-0"},
    {"t": 3.0, "kind": "worker-joined", "worker": "cpu-0", "pool": "cpu", "facts": _FACTS},
    {"t": 4.0, "kind": "job-placed", "key": "a-run-1-1.1", "workers": {"cpu-0": 2}, "memory_mb": 900, "devices": {}},
    {"t": 4.1, "kind": "job-started", "key": "a-run-1-1.1", "worker": "cpu-0", "pid": 7, "start": "warm", "time": 4.1},
    {"t": 9.0, "kind": "job-ended", "outcome": _OUTCOME},
    {"t": 9.1, "kind": "job-finished", "key": "a-run-1-1.1", "status": "failed", "message": "exit code 1"},
    {"t": 9.2, "kind": "job-requeued", "key": "b-run-2-1.1", "run": 2, "reason": "lost"},
    {"t": 9.3, "kind": "job-dropped", "keys": ["b-run-2-1.1"]},
    {"t": 9.4, "kind": "worker-lost", "worker": "cpu-0", "pool": "cpu", "reason": "gone", "planned": False},
    {"t": 9.5, "kind": "allocation-gone", "worker": "cpu-0", "pool": "cpu", "reason": "ended"},
    {"t": 9.6, "kind": "pool-given-up", "pool": "cpu", "reason": "refused"},
    {"t": 9.7, "kind": "said", "level": "info", "text": "hello"},
    {"t": 9.9, "kind": "run-ended", "summary": {"jobs": 2}, "left": []},
]  # fmt: skip
STRANGE = (
    None, True, -1, 0, 1e308, -1e-9, 10**40, "", "x" * 5000, "\x1b[31m\x00\u202e", "cpu-9", [], [None], [[1]], {},
    {"a": 1}, {"pool": None}, ["cpu-0", "cpu-9"],
)  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """The value, or a part of it, is another one, or is missing."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        copy = dict(value)
        what = chance.random()
        if what < 0.25:
            del copy[name]
        elif what < 0.6:
            copy[name] = chance.choice(STRANGE)
        else:
            copy[name] = changed(value[name], chance)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.8:
        copy = list(value)
        position = chance.randrange(len(copy))
        copy[position] = changed(copy[position], chance)
        return copy
    return chance.choice(STRANGE)


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """As a broken disk, a cut line or an ill will would leave it."""
    copy = bytearray(data)
    for _ in range(chance.choice((1, 2, 10))):
        position = chance.randrange(len(copy) + 1)
        what = chance.randrange(4)
        if what == 0:
            copy[position : position + 1] = chance.randbytes(1)
        elif what == 1:
            copy[position : position + chance.randint(1, 40)] = b""
        elif what == 2:
            copy[position:position] = copy[:position][-chance.randint(1, 200) :] * chance.choice((1, 3))
        else:
            copy[position:position] = chance.choice(
                (b"\x00", b"\r\n", b"\xff\xfe", b"\x1b]0;x\x07", b"|", b"\n\n", b"-")
            )
    return bytes(copy)


def test_events_that_are_damaged_are_passed_over(tmp_path: Path) -> None:
    """The picture, the table and each kind of report can be made of what is left; what is sound is in it."""
    chance = random.Random(25)
    for number in range(COUNT):
        events: list[Any] = [dict(event) for event in EVENTS]
        for _ in range(chance.choice((1, 2, 5))):
            position = chance.randrange(len(events))
            events[position] = changed(events[position], chance)
        log = tmp_path / "run.events.jsonl"
        lines = b"\n".join(json.dumps(event).encode() for event in events)
        log.write_bytes(bytes_changed(lines, chance) if number % 3 == 0 else lines)
        model = RunModel(read_events(log))
        table(snapshot(model))
        if number % 10 == 0:
            for ending in ("html", "json", "tsv"):
                write_report(model, tmp_path / f"report.{ending}")


def test_the_second_terminal_bears_a_damaged_log(tmp_path: Path) -> None:
    """Its commands print what there is, and no traceback."""
    chance = random.Random(13)
    log = tmp_path / "run.events.jsonl"
    for _ in range(100):
        events = [changed(event, chance) if chance.random() < 0.3 else event for event in EVENTS]
        log.write_text("\n".join(map(json.dumps, events)))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            for command in (["status"], ["jobs"], ["explain", "1"], ["log", "1"]):
                assert main([*command, str(log)]) in (0, 1)
        assert "Traceback" not in errors.getvalue()


def test_records_that_are_damaged_name_nothing_else(tmp_path: Path) -> None:
    """What is left of a record of allocations is read without an error, and gives no option to a cancel command."""
    lines = [
        {"submitting": "cpu-0", "name": "snakemake-r-cpu", "system": "slurm", "where": None},
        {"submitted": "cpu-0", "id": "12"},
        {"submitting": "cpu-1", "name": "snakemake-r-cpu", "system": "slurm", "where": None},
        {"gone": "cpu-1"},
    ]
    chance = random.Random(5)
    tmp_path.chmod(0o700)
    (tmp_path / RECORD).touch(0o600)
    for number in range(COUNT):
        events: list[Any] = [changed(line, chance) if chance.random() < 0.4 else line for line in lines]
        text = "\n".join(map(json.dumps, events)).encode()
        (tmp_path / RECORD).write_bytes(bytes_changed(text, chance) if number % 3 == 0 else text)
        for entry in Record(tmp_path).entries():
            assert entry.system in SYSTEMS
            assert not (entry.id or "").startswith("-")


ANSWERS = {
    "slurm": b"12|PENDING|Priority\n13|RUNNING|None\n14|FAILED|NonZeroExitCode\n",
    "pbs": b"Job Id: 12.srv\n    job_state = Q\n    comment = no nodes\nJob Id: 13.srv\n    job_state = R\n",
    "lsf": b"JOBID USER STAT QUEUE FROM_HOST EXEC_HOST JOB_NAME SUBMIT_TIME\n12 me PEND normal a - x y\n",
    "sge": b"job-ID prior name user state submit\n---\n 12 0.5 x me qw 01/01/2026 1\n 13 0.5 x me r 1 1\n",
    "oar": b"Job_Id: 12\n    state = Waiting\n    message = Karma\nJob_Id: 13\n    state = Running\n",
    "moab": b"active jobs---\nJOBID USERNAME STATE PROCS\nMoab.13 me Running 4\neligible jobs\n12 me Idle 4\n",
    "htcondor": b"12\t0\t1\tundefined\n13\t0\t2\tundefined\n14\t0\t5\t7\tcannot write\n",
}


@pytest.mark.parametrize("cluster", sorted(SYSTEMS))
def test_answers_of_a_batch_system_that_are_damaged(cluster: str) -> None:
    """Each allocation has a state afterwards; where the command failed, no missing one is taken for gone."""
    chance = random.Random(cluster)
    for _ in range(COUNT // len(SYSTEMS) + 1):
        out = bytes_changed(ANSWERS[cluster], chance).decode(errors="replace")
        error = bytes_changed(b"cannot connect to server", chance).decode(errors="replace")
        for code in (0, 1):
            seen = look(SYSTEMS[cluster], ["12", "77777"], code, out, error)
            assert set(seen) == {"12", "77777"}
            assert code == 0 or seen["77777"].kind != "gone"
        look(SYSTEMS[cluster], ["12"], 1, "", "\n \n")


_LOG = (
    b'Building DAG of jobs...\nTraceback (most recent call last):\n  File "x.py", line 1, in <module>\nKeyError: 1\n'
    b"subprocess.CalledProcessError: Command 'set -euo pipefail; false' returned non-zero exit status 1.\n"
    b"[Sat Nov 28 2026]\nError in rule a:\n    jobid: 0\n    output: out\n    shell:\n        false\n"
    b"(command exited with non-zero exit code)\n"
)


@pytest.mark.parametrize("read", [tail, command_end])
def test_logs_of_jobs_that_hold_anything(tmp_path: Path, read: Callable[[str], str]) -> None:
    """Changed, repeated and endless ones: their end is found, and what is shown of it is short."""
    chance = random.Random(10)
    log = tmp_path / "log"
    begun = time.process_time()
    for number in range(COUNT // 2):
        data = bytes_changed(_LOG, chance)
        log.write_bytes(data * (500 if number % 50 == 0 else 1))
        assert len(read(str(log))) < 100_000
    assert time.process_time() - begun < 60  # minutes each before
