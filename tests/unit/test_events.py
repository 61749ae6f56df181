"""The event log, and the model that is made from it."""

import errno
import itertools
import json
import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.jobs import Outcome, WorkerFacts
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.observe import events
from snakemake_executor_plugin_dask.observe.behind import Behind
from snakemake_executor_plugin_dask.observe.events import EventLog, logs_in, read_events
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.observer import Observer
from snakemake_executor_plugin_dask.observe.use import allocation_wait_s, integral, steps


def at(when: float, kind: str, **fields):
    return {"v": 1, "t": float(when), "kind": kind, **{name: events.plain(value) for name, value in fields.items()}}


def joined(when: float, name: str = "cpu-0", cores: int = 4, **facts):
    return at(when, "worker-joined", worker=name, pool="cpu", facts=WorkerFacts(name, "n1", 1, 2, cores, 8000, **facts))


def queued(when: float, jobid: int = 1, rule: str = "a", **request):
    return at(
        when,
        "job-queued",
        key=f"{rule}-run-{jobid}-1.1",
        rule=rule,
        jobid=str(jobid),
        attempt=1,
        request=Request(**{"cores": 2, **request}),
    )


def placed(when: float, jobid: int = 1, run: int = 1, worker: str = "cpu-0", rule: str = "a", **fields):
    return at(when, "job-placed", key=f"{rule}-run-{jobid}-1.{run}", worker=worker, **fields)


def ended(when: float, jobid: int = 1, run: int = 1, status: str = "succeeded", rule: str = "a", **fields):
    return at(when, "job-ended", outcome=Outcome(f"{rule}-run-{jobid}-1.{run}", status, **fields))


def test_a_line_an_event_for_the_owner_alone(tmp_path):
    """Events come back as they were written, with version and time, from a file that others cannot read."""
    path = tmp_path / "run.events.jsonl"
    log = EventLog(path, clock=lambda: 12.3456)
    log.write("said", level="info", text="two\nlines \x1b[31m é \udcff")
    log.write("worker-joined", facts=WorkerFacts("w", "h", 1, 2, 4, 8), environment={"SECRET": "x"})
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().isascii()
    said, facts = read_events(path)
    assert said == {"v": 1, "t": 12.346, "kind": "said", "level": "info", "text": "two\nlines \x1b[31m é \udcff"}
    assert facts["facts"]["cores"] == 4
    assert "SECRET" not in path.read_text()


def test_each_event_is_in_the_file_before_the_next(tmp_path):
    """Nothing waits in a buffer that SIGKILL would lose."""
    path = tmp_path / "log"
    log = EventLog(path)
    for number in range(3):
        log.write("said", text=str(number))
        assert len(list(read_events(path))) == number + 1
    log.close()


def test_a_second_writer_appends(tmp_path):
    """An existing log is kept, never cut."""
    path = tmp_path / "log"
    for text in ("a", "b"):
        log = EventLog(path)
        log.write("said", text=text)
        log.close()
    assert [event["text"] for event in read_events(path)] == ["a", "b"]


@given(st.integers(0, 400))
def test_a_torn_log_reads_up_to_the_tear(cut):
    """Wherever SIGKILL cuts the last line off, all before it is read and nothing is invented."""
    lines = [json.dumps(at(number, "said", text="x" * 20)).encode() + b"\n" for number in range(5)]
    whole = b"".join(lines)
    directory = os.environ.get("TMPDIR", "/tmp")
    path = os.path.join(directory, f"torn-{os.getpid()}.jsonl")
    try:
        with open(path, "wb") as file:
            file.write(whole[: len(whole) - min(cut, len(whole))])
        read = list(read_events(path))
    finally:
        os.unlink(path)
    kept = len(whole) - min(cut, len(whole))
    complete = sum(1 for i in range(5) if len(b"".join(lines[: i + 1])) - 1 <= kept)
    assert [event["t"] for event in read] == [float(i) for i in range(complete)]


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"kind": "x"}', b'{"kind": 1, "t": 1}', b'{"kind":"x","t":true}', b"\xff"]
)
def test_lines_that_are_no_events_are_passed_over(tmp_path, line):
    """A reader never fails for a line that someone else broke."""
    path = tmp_path / "log"
    good = json.dumps(at(1, "said", text="x")).encode()
    path.write_bytes(line + b"\n" + good + b"\n")
    assert len(list(read_events(path))) == 1


def test_a_full_disk_is_told_once_and_survived(tmp_path, monkeypatch):
    """Writes that fail or are cut short never raise; when there is room again, the next event is whole."""
    told, also = [], []
    path = tmp_path / "log"
    log = EventLog(path, on_error=told.append, also=also.append)
    log.write("said", text="first")
    real = os.write
    monkeypatch.setattr(events.os, "write", lambda fd, data: real(fd, data[:10]))
    log.write("said", text="cut")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events.os, "write", full)
    log.write("said", text="lost")
    monkeypatch.setattr(events.os, "write", real)
    log.write("said", text="after")
    log.close()
    assert [event["text"] for event in read_events(path)] == ["first", "after"]
    assert len(also) == 4
    assert len(told) == 1
    assert str(path) in told[0]


def test_a_directory_that_cannot_be_written_is_told_once(tmp_path):
    """A log that cannot even be opened costs a sentence."""
    (tmp_path / "file").write_text("")
    told = []
    log = EventLog(tmp_path / "file" / "log", on_error=told.append)
    log.write("said", text="a")
    log.write("said", text="b")
    assert len(told) == 1


def test_the_newest_log_of_a_directory(tmp_path):
    """The run that wrote last is the one that is shown."""
    folder = tmp_path / ".snakemake" / "dask"
    folder.mkdir(parents=True)
    assert logs_in(tmp_path) == []
    for name, age in (("old", 100), ("new", 10), ("older", 1000)):
        path = folder / f"{name}.events.jsonl"
        path.write_text("")
        os.utime(path, (10_000 - age, 10_000 - age))
    assert logs_in(tmp_path)[-1] == folder / "new.events.jsonl"
    assert logs_in(folder)[-1] == folder / "new.events.jsonl"


def test_figures_of_a_small_run():
    """Core-seconds held and used, CPU and memory, by hand."""
    model = RunModel(
        [
            at(0, "run-started", run_id="run", options={"pools": [Pool("cpu", "local")]}),
            joined(10),
            queued(11, memory_mb=3000),
            placed(12),
            at(12.5, "job-started", key="a-run-1-1.1", worker="cpu-0", pid=7, start="warm"),
            ended(22, started=1.0, ended=11.0, peak_memory_mb=1500.0, cpu_s=15.0),
            at(30, "worker-leaving", worker="cpu-0", pool="cpu", reason="idle"),
            at(40, "run-ended"),
        ]
    )
    held = integral(model)
    assert held.cores == 4 * 20
    assert held.job_cores == 2 * 10
    assert held.job_cpu == pytest.approx(15)
    assert held.memory_mb == 8000 * 20
    assert held.job_memory_mb == 3000 * 10
    assert held.job_peak_memory_mb == 1500 * 10
    assert model.attempts["a-run-1-1.1"].cpu_efficiency == pytest.approx(0.75)
    assert list(model.counts().values()) == [1, 1, 0, 0, 0, 0, 1, 0]
    assert steps(model)[-1][1] == type(held)()


def test_an_allocation_counts_from_its_start_to_its_end():
    """What start-up and shutdown cost belongs to what was held; the time in the queue does not."""
    model = RunModel(
        [
            at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="77"),
            queued(0),
            at(50, "allocation-running", worker="cpu-0", pool="cpu"),
            joined(60),
            placed(60),
            ended(70),
            at(80, "worker-leaving", worker="cpu-0", pool="cpu", reason="idle"),
            at(90, "allocation-gone", worker="cpu-0", pool="cpu", reason="given back", joined=True),
            at(100, "run-ended"),
        ]
    )
    assert integral(model).cores == 4 * 40
    assert model.allocations[0].queue_s(model.end_time) == 50
    assert allocation_wait_s(model) == 50


def test_an_allocation_whose_worker_never_came_is_waste():
    """It counts with its pool's size from its start to its end."""
    model = RunModel(
        [
            at(0, "run-started", options={"pools": [Pool("cpu", "slurm", cores=8, memory_mb=100, nodes=2)]}),
            at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="77"),
            at(5, "allocation-running", worker="cpu-0", pool="cpu"),
            at(15, "allocation-gone", worker="cpu-0", pool="cpu", reason="bad prologue"),
        ]
    )
    assert integral(model).cores == 8 * 2 * 10


def test_waits_for_allocations_are_counted_once():
    """Two jobs that wait for two allocations at the same time wait once; without a waiting job nobody waits."""
    model = RunModel(
        [
            at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="1"),
            at(0, "allocation-submitted", worker="cpu-1", pool="cpu", allocation="2"),
            {**queued(10, 1), "pool": "cpu"},
            {**queued(20, 2), "pool": "cpu"},
            {**queued(20, 3), "pool": "other"},
            joined(30),
            placed(30, 1),
            placed(30, 2),
            at(90, "run-ended"),
        ]
    )
    assert allocation_wait_s(model) == 20


def test_a_lost_worker_and_what_follows():
    """Its attempt ends, a further run of the job waits and succeeds, and the job counts once."""
    model = RunModel(
        [
            joined(0),
            queued(0),
            placed(1),
            at(5, "worker-lost", worker="cpu-0", pool="cpu", reason="gone", planned=False),
            ended(6, status="lost", detail="worker cpu-0 was lost"),
            at(6, "job-requeued", key="a-run-1-1.1", run=2, reason="gone"),
            joined(8, "cpu-1"),
            placed(9, run=2, worker="cpu-1"),
            ended(12, run=2),
            at(12, "job-finished", key="a-run-1-1.1", status="succeeded", runs=2),
        ]
    )
    counts = model.counts()
    assert (counts["jobs"], counts["succeeded"], counts["attempts"], counts["lost_workers"]) == (1, 1, 2, 1)
    first, second = model.attempts.values()
    assert (first.status, second.status, second.run) == ("lost", "succeeded", 2)
    assert model.workers[0].state == "lost"
    assert not model.waiting
    assert not model.running


def test_a_planned_loss_is_not_a_lost_worker():
    """An allocation that reaches its end is no accident."""
    model = RunModel([joined(0), at(5, "worker-lost", worker="cpu-0", pool="cpu", reason="end", planned=True)])
    assert model.counts()["lost_workers"] == 0


def test_a_preempted_worker_is_not_a_lost_one():
    """That is known only after the loss."""
    lost = at(5, "worker-lost", worker="cpu-0", pool="cpu", reason="gone", planned=False)
    model = RunModel([joined(0), lost, at(6, "worker-preempted", worker="cpu-0", pool="cpu")])
    assert model.counts()["lost_workers"] == 0
    assert model.workers[0].planned


def test_a_job_that_no_pool_takes_fails_without_an_attempt():
    """It counts as a failed job that never ran, with the reason."""
    model = RunModel(
        [queued(0), at(1, "job-finished", key="a-run-1-1.1", status="not-started", message="too large for any pool")]
    )
    counts = model.counts()
    assert (counts["failed"], counts["attempts"]) == (1, 0)
    assert model.attempts["a-run-1-1.1"].message == "too large for any pool"


@pytest.mark.parametrize("told", [True, False])
def test_stopped_jobs_have_not_failed(told):
    """What ran when Snakemake was interrupted counts as stopped, whether Snakemake was told of each or not."""
    log = [joined(0), queued(0), placed(0), ended(5, status="cancelled")]
    log += [at(5, "job-finished", key="a-run-1-1.1", status="cancelled", message="")] if told else []
    counts = RunModel(log).counts()
    assert (counts["failed"], counts["stopped"], counts["unfinished"]) == (0, 1, 0)


def test_dropped_jobs_are_counted_as_not_started():
    """After an error, what was not started is neither failed nor waiting."""
    model = RunModel([queued(0, 1), queued(0, 2), at(1, "job-dropped", keys=["a-run-1-1.1", "a-run-2-1.1"])])
    assert model.counts()["dropped"] == 2
    assert not model.waiting


def test_a_log_that_stops_in_the_middle_gives_figures_up_to_there():
    """After SIGKILL what ran then counts until the last event."""
    model = RunModel([joined(0), queued(0), placed(0), at(10, "said", text="x")])
    assert integral(model).cores == 40
    assert integral(model).job_cores == 20
    assert model.counts()["unfinished"] == 1


def test_jobs_on_several_workers_hold_on_each():
    """Cores and memory of an MPI job count on every worker that it holds."""
    model = RunModel(
        [
            joined(0, "m-0"),
            joined(0, "m-1"),
            queued(0, cores=6, memory_mb=1000, nodes=2),
            placed(0, worker="m-0", workers={"m-0": 3, "m-1": 3}),
            ended(10),
            at(10, "run-ended"),
        ]
    )
    assert integral(model).job_cores == 60
    assert integral(model).job_memory_mb == 2 * 1000 * 10


KINDS = ["new-kind", *sorted(name[4:].replace("_", "-") for name in dir(RunModel) if name.startswith("_on_"))]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "t": st.floats(0, 100),
                "kind": st.sampled_from(KINDS),
            },
            optional={
                name: st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=2)
                for name in ("key", "worker", "pool", "request", "outcome", "facts", "pools", "workers", "run", "text")
            },
        ),
        max_size=15,
    )
)
def test_no_event_however_wrong_stops_the_model(log):
    """A log by another version, or by nobody, gives a picture and no traceback."""
    model = RunModel(log)
    integral(model)
    assert set(model.counts()) >= {"jobs", "attempts"}


def test_a_request_is_logged_without_its_defaults():
    """What every job's request has in common would be most of a large run's log."""
    assert queued(1, cores=3)["request"] == {"cores": 3, "gpus": 0, "nodes": 1}
    assert queued(1, memory_mb=500, mpi=True)["request"] == {
        "cores": 2,
        "memory_mb": 500,
        "gpus": 0,
        "nodes": 1,
        "mpi": True,
    }


def test_waiting_and_failed_jobs_are_counted_as_they_change():
    """`watch` looks every second, and must not go through all jobs for what it shows."""
    lines = [at(0, "run-started", options={"pools": [Pool("cpu", "slurm", 0, 4)]}), joined(1)]
    lines += [queued(2, jobid) | {"pool": "cpu"} for jobid in range(5)]
    model = RunModel(lines)
    assert model.waits == {"cpu": 5}
    model.apply(queued(2, 0) | {"pool": "cpu"})  # told twice
    for line in (placed(3, 0), placed(3, 1), ended(4, 0, status="failed"), ended(5, 1, status="lost")):
        model.apply(line)
    model.apply(at(5, "job-requeued", key="a-run-1-1.1", run=2, reason="lost"))
    assert model.waits == {"cpu": 4}
    assert [attempt.jobid for attempt in model.failed.values()] == ["0"]
    model.apply(queued(6, 0) | {"pool": "cpu", "attempt": 2, "key": "a-run-0-2.1"})  # Snakemake's next attempt
    assert model.waits == {"cpu": 5}
    assert not model.failed
    model.apply(at(7, "job-dropped", keys=list(model.waiting)))
    assert not model.waits
    assert not model.waiting


def test_the_sum_of_what_was_held_is_that_of_its_steps():
    """Both ways of counting, also over what other runs hold meanwhile."""
    lines = [joined(0), queued(1), placed(2), queued(3, 2), placed(4, 2), ended(9, started=2.0, ended=9.0, cpu_s=3.0)]
    held = {"cpu-0": {"cores": 1, "memory_mb": 100, "gpus": 0, "jobs": 1}}
    lines += [at(10, "others-held", held=held), at(14, "worker-leaving", worker="cpu-0", pool="cpu", reason="idle")]
    model = RunModel([*lines, at(15, "run-ended")])
    moments = steps(model)
    for i, name in enumerate(type(moments[0][1]).__slots__):
        total = sum(getattr(each, name) * (end - start) for (start, each), (end, _) in itertools.pairwise(moments))
        assert getattr(integral(model), name) == pytest.approx(total), (i, name)


def test_a_file_server_that_hangs_holds_up_nobody(tmp_path):
    """To open a pipe takes as long as nobody reads it: events are heard of meanwhile, and the trouble is told."""
    path, said = tmp_path / "run.events.jsonl", []
    os.mkfifo(path, 0o600)
    observer = Observer(path, None, lambda _, text: said.append(text))
    for _ in range(3):
        observer.say("info", "goes on")
    assert said == ["goes on"] * 3
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        observer.finish()
    finally:
        os.close(reader)
    assert [str(path) in text for text in said[3:]] == [True]


def test_what_is_written_after_the_end_goes_into_no_other_file(tmp_path, monkeypatch):
    """Where a file server hangs until the run gives up on its log: by then another file may have that one's number."""
    held, go_on, write, close = threading.Event(), threading.Event(), os.write, Behind.close
    path = tmp_path / "run.events.jsonl"

    def hang(descriptor, data):
        if os.path.samefile(f"/proc/self/fd/{descriptor}", path):
            held.set()
            assert go_on.wait(30)
        return write(descriptor, data)

    said, others = [], set(threading.enumerate())
    observer = Observer(path, None, lambda _, text: said.append(text))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", hang)
        patched.setattr(Behind, "close", lambda behind: close(behind, 0.01))
        observer.say("info", "hangs")
        assert held.wait(30)
        observer.finish()
        with open(tmp_path / "other", "wb") as other:
            go_on.set()
            for thread in set(threading.enumerate()) - others:
                thread.join(30)
            assert not os.fstat(other.fileno()).st_size
    assert "could not be written so far" in said[-1]
    assert [event["kind"] for event in read_events(path)] == ["said", "run-ended"]
