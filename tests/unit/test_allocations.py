"""Brakes on submitting, the record of allocations, and cancelling what was left. With a fake clock and a fake queue."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.batch import allocations
from snakemake_executor_plugin_dask.batch.allocations import (
    RECORD,
    Brakes,
    Outlook,
    Ran,
    Record,
    cancel_hints,
    cancel_recorded,
    cancel_run,
    cancel_unanswered,
)
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.former import this_process


def test_few_allocations_are_queued_at_once() -> None:
    """However many are wanted, three wait in the queue at most."""
    brakes = Brakes()
    assert brakes.allowed(10, 0, 0.0) == 3
    assert brakes.allowed(10, 2, 0.0) == 1
    assert brakes.allowed(10, 3, 0.0) == 0
    assert brakes.allowed(1, 0, 0.0) == 1
    assert brakes.allowed(900, 10, 0.0, up=100) == 15


def test_delays_grow_after_failures() -> None:
    """After each failure the next try waits twice as long, and is one alone."""
    brakes = Brakes(failures_max=10)
    now = 0.0
    for delay in (5.0, 10.0, 20.0, 40.0):
        brakes.failed(now)
        assert brakes.allowed(5, 0, now + delay - 0.1) == 0
        now += delay
        assert brakes.allowed(5, 0, now) == 1
        assert brakes.allowed(5, 1, now) == 0


def test_delays_have_an_end() -> None:
    """The longest delay is five minutes."""
    brakes = Brakes(failures_max=100)
    now = 0.0
    for _ in range(20):
        brakes.failed(now)
        now = brakes.not_before
    brakes.failed(now)
    assert brakes.not_before == now + 300.0


def test_pool_is_given_up_after_failures_in_a_row() -> None:
    """Where no worker joined meanwhile: no more tries."""
    brakes = Brakes()
    now = 0.0
    for _ in range(5):
        assert not brakes.given_up
        brakes.failed(now)
        now = brakes.not_before
    assert brakes.given_up
    assert brakes.allowed(1, 0, now + 1e6) == 0


@pytest.mark.parametrize(
    ("outlook", "elsewhere", "tries", "after_s"),
    [
        ("final", True, 2, 5.0),
        ("unknown", False, 5, 75.0),
        ("passing", True, 5, 75.0),
        ("passing", False, 12, 1815.0),
    ],
)
def test_how_soon_a_pool_is_given_up(outlook: Outlook, elsewhere: bool, tries: int, after_s: float) -> None:
    """What is refused each time at once; what may pass is waited for, unless the jobs fit elsewhere."""
    brakes = Brakes()
    now = 0.0
    brakes.failed(now, outlook, elsewhere=elsewhere)
    while not brakes.given_up:
        now = brakes.not_before
        brakes.failed(now, outlook, elsewhere=elsewhere)
    assert (brakes.failures, now) == (tries, after_s)


def test_a_pool_with_workers_is_not_given_up() -> None:
    """For want of further ones: jobs run on those that are there. Once these are gone, the next failure counts."""
    brakes = Brakes()
    now = 0.0
    for _ in range(20):
        brakes.failed(now, "final", up=1)
        now = brakes.not_before
        assert not brakes.given_up
        assert brakes.allowed(3, 0, now) == 1
    brakes.failed(now)
    assert brakes.given_up


def test_allocations_that_fail_together_are_one_try() -> None:
    """Three submitted at once and refused at once count as one failure."""
    brakes = Brakes()
    for _ in range(3):
        brakes.failed(1.0)
    assert brakes.failures == 1


def test_worker_that_joins_releases_the_brakes() -> None:
    """Failures count only in a row."""
    brakes = Brakes()
    brakes.failed(0.0)
    brakes.joined()
    assert brakes.allowed(5, 0, 1.0) == 3


@given(st.lists(st.tuples(st.floats(0, 400), st.booleans()), max_size=60))
def test_brakes_never_allow_more_than_wanted_or_queued(steps: list[tuple[float, bool]]) -> None:
    """Whatever happens, no more than three are queued, and a pool that was given up stays so."""
    brakes = Brakes()
    now, given_up = 0.0, False
    for wait, joined in steps:
        now += wait
        if joined:
            brakes.joined()
        else:
            brakes.failed(now)
        given_up = given_up or brakes.given_up
        assert 0 <= brakes.allowed(7, 1, now) <= 2
        assert brakes.given_up == given_up


class Queue:
    """Stands in for Slurm's commands; ``left`` is what its queue holds. It forgets a job after ``patience`` cancels."""

    def __init__(self, *left: str, patience: int = 1, answers: bool = True) -> None:
        self.left = dict.fromkeys(left, patience)
        self.answers = answers
        self.ran: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Ran:
        self.ran.append(list(command))
        if not self.answers:
            return Ran(1, "", "Unable to contact slurm controller")
        if command[0] == "scancel":
            job = command[-1]
            if job in self.left:
                self.left[job] -= 1
                if not self.left[job]:
                    del self.left[job]
            return Ran(0, "", "")
        return Ran(0, "\n".join(f"{job}|RUNNING|None" for job in self.left), "")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def recorded(state_dir: Path, *ids: str) -> Record:
    record = Record(state_dir)
    for number, allocation in enumerate(ids):
        record.submitting(f"cpu-{number}", "snakemake-run-cpu", "slurm", None)
        record.submitted(f"cpu-{number}", allocation)
    return record


def test_record_keeps_what_is_not_gone(tmp_path: Path) -> None:
    """What was submitted and not seen to go is listed, with its id; the file is for the user alone."""
    record = recorded(tmp_path, "7", "8")
    record.submitting("cpu-2", "snakemake-run-cpu", "slurm", "far")
    record.gone("cpu-0")
    entries = record.entries()
    assert [(entry.worker, entry.id, entry.where) for entry in entries] == [
        ("cpu-1", "8", None),
        ("cpu-2", None, "far"),
    ]
    assert (tmp_path / RECORD).stat().st_mode & 0o777 == 0o600


def test_record_cut_off_in_a_line(tmp_path: Path) -> None:
    """A host that dies while it writes leaves half a line: the rest counts."""
    record = recorded(tmp_path, "7")
    with (tmp_path / RECORD).open("a") as stream:
        stream.write('{"gone": "cp')
    assert [entry.id for entry in record.entries()] == ["7"]


def test_cancel_until_the_queue_is_empty(tmp_path: Path) -> None:
    """Cancelling is checked against the queue and tried again; then nothing is recorded, and again does nothing."""
    record = recorded(tmp_path, "7", "8")
    queue, clock = Queue("7", "8", "99", patience=2), Clock()
    assert cancel_run(tmp_path, run=queue, sleep=clock.sleep, clock=clock) == []
    assert list(queue.left) == ["99"]
    assert record.entries() == []
    ran = len(queue.ran)
    assert cancel_run(tmp_path, run=queue, sleep=clock.sleep, clock=clock) == []
    assert len(queue.ran) == ran


def test_what_cannot_be_cancelled_is_said(tmp_path: Path) -> None:
    """A batch system that does not answer: a sentence with the command, and it stays recorded."""
    record = recorded(tmp_path, "7")
    clock = Clock()
    (sentence,) = cancel_run(tmp_path, run=Queue("7", answers=False), sleep=clock.sleep, clock=clock)
    assert "`scancel -- 7`" in sentence
    assert "Unable to contact" in sentence
    assert clock.now >= 60
    assert len(record.entries()) == 1
    assert cancel_hints(tmp_path) == {"cpu-0": "allocation 7; cancel it with `scancel -- 7`"}


def test_a_host_without_the_commands_is_not_waited_for(tmp_path: Path) -> None:
    """Nothing can be cancelled from there; it is said at once, and stays recorded."""
    record = recorded(tmp_path, "7", "8")
    clock = Clock()
    missing = Ran(127, "", "squeue: No such file or directory")
    sentences = cancel_run(tmp_path, run=lambda _: missing, sleep=clock.sleep, clock=clock)
    assert clock.now == 0.0
    assert len(sentences) == len(record.entries()) == 2
    assert "No such file" in sentences[0]


def test_one_question_about_all_that_is_left(tmp_path: Path) -> None:
    """However many allocations a run had."""
    recorded(tmp_path, *map(str, range(20)))
    queue, clock = Queue(*map(str, range(20))), Clock()
    assert cancel_run(tmp_path, run=queue, sleep=clock.sleep, clock=clock) == []
    # And one about all those that it does not list.
    assert sum(command[0] == "squeue" for command in queue.ran) == 2


def test_submission_that_was_cut_off_is_cancelled_by_name(tmp_path: Path) -> None:
    """Where the id is not known, the allocation's name is used."""
    Record(tmp_path).submitting("cpu-0", "snakemake-run-cpu", "slurm", None)
    queue, clock = Queue(), Clock()
    assert cancel_run(tmp_path, run=queue, sleep=clock.sleep, clock=clock) == []
    assert ["scancel", "--name=snakemake-run-cpu"] in queue.ran


def test_submission_without_an_answer_is_cancelled_at_the_end(tmp_path: Path) -> None:
    """It may have been queued all the same; what has an id is left to its worker."""
    record = recorded(tmp_path, "7")
    record.submitting("cpu-1", "snakemake-run-cpu", "slurm", "far")
    queue = Queue("7")
    cancel_unanswered(tmp_path, queue)
    assert queue.ran == [["scancel", "--clusters=far", "--name=snakemake-run-cpu"]]
    assert [entry.id for entry in record.entries()] == ["7"]


def test_only_what_a_dead_run_left_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living run's allocations stay; those of one of whom nobody here can tell stay, too, and are said."""
    runs = {"alive": "7", "dead": "8", "far": "9"}
    held = {}
    for name, number in runs.items():
        (tmp_path / name).mkdir(mode=0o700)
        recorded(tmp_path / name, number)
        held[name] = state.Held(tmp_path / name)
    far = dataclasses.replace(this_process(), host="login2", boot="another")
    dead = dataclasses.replace(this_process(), start="1")
    for name, process in (("far", far), ("dead", dead)):
        held[name].release()
        (tmp_path / name / "lock").write_bytes(process.to_json())
    queue = Queue("7", "8", "9")
    original = cancel_run
    monkeypatch.setattr(allocations, "cancel_run", lambda path, **more: original(path, run=queue, **more))
    (said,) = cancel_recorded(tmp_path)
    assert list(queue.left) == ["7", "9"]
    assert "on login2" in said
    assert "`scancel -- 9`" in said
    held["alive"].release()


@pytest.mark.parametrize("number", ["--user=root", "-u", "0", "all", "*", "7 8", "7\n", ""])
def test_an_id_that_is_none_reaches_no_command(tmp_path: Path, number: str) -> None:
    """Whatever a record holds, only ids of allocations are handed to the batch system."""
    recorded(tmp_path, number)
    queue, clock = Queue("7"), Clock()
    assert cancel_run(tmp_path, run=queue, sleep=clock.sleep, clock=clock) == []
    assert queue.ran == [["scancel", "--name=snakemake-run-cpu"]]


def test_records_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    """Names, systems and clusters that the plugin never writes, and lines that are no record at all."""
    good = {"submitting": "w", "name": "snakemake-run-cpu", "system": "slurm", "where": None}
    wrong = [{"name": "other"}, {"name": "snakemake-a b"}, {"system": "rm"}, {"where": "-M all"}, {"submitting": 3}]
    lines = [json.dumps(good | change) for change in wrong]
    lines += ["[" * 100_000, "null", "7", '{"submitted": []}', '{"gone": {}}', "\x00\xff"]
    (tmp_path / RECORD).write_text("\n".join(lines))
    (tmp_path / RECORD).chmod(0o600)
    assert Record(tmp_path).entries() == []


def test_nothing_of_dask_is_imported() -> None:
    """Snakemake's own process cancels with this module."""
    program = (
        "import sys, snakemake_executor_plugin_dask.batch.allocations\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pool_that_was_given_up_is_tried_once_more() -> None:
    """At once; if that fails too it is given up again."""
    brakes = Brakes(failures_max=2)
    for now in (0.0, 1000.0):
        brakes.failed(now)
    assert brakes.given_up
    brakes.try_again()
    assert brakes.allowed(3, 0, 1000.0) == 1
    brakes.failed(1001.0)
    assert brakes.given_up
