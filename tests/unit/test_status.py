"""What is said while a run goes on, the table, and the line at its end."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.messages import Blocker
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.observe import status
from snakemake_executor_plugin_dask.observe.model import RunModel
from snakemake_executor_plugin_dask.observe.picture import PoolState, Snapshot, WaitingState, snapshot, waiting_states
from snakemake_executor_plugin_dask.observe.status import Narrator, end_line, table, waiting_line
from snakemake_executor_plugin_dask.observe.use import integral
from snakemake_executor_plugin_dask.observe.wording import clean, core_times

from .test_events import at, ended, joined, placed, queued

CPU = PoolState("cpu", "slurm", workers_max=20)
MEMORY = WaitingState("cpu", 12, "memory", "they need 64 GB, the worker with most room has 32 GB free")


@pytest.fixture(autouse=True)
def _no_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of day in seconds."""
    monkeypatch.setattr(status, "clock", lambda when: f"T{when:.0f}")


class Watch:
    """A narrator, and the time that it is told."""

    def __init__(self) -> None:
        self.narrator = Narrator()
        self.now = 1000.0
        self.picture = Snapshot(now=self.now, started=self.now, last_progress=self.now)

    def look(self, after: float = 0.0, **changes) -> list[str]:
        self.now += after
        self.picture = dataclasses.replace(self.picture, now=self.now, **changes)
        return self.narrator.look(self.picture)

    def settle(self, **changes) -> list[str]:
        """A change, and what is said once it has lasted."""
        return [*self.look(1, **changes), *self.look(3)]


def test_nothing_is_said_of_nothing():
    """A run without pools or jobs is silent for ever."""
    watch = Watch()
    assert [watch.look(100) for _ in range(20)] == [[]] * 20


def test_a_pool_comes_up_in_two_lines():
    """One when allocations are queued, one when workers are there; none for what lasts a moment."""
    watch = Watch()
    queued_ones = dataclasses.replace(CPU, queued=3, queued_since=1000.0, queue_reason="Priority")
    assert watch.settle(pools=(queued_ones,)) == [
        "Pool cpu is coming up: 3 allocations are queued since T1000, reason Priority."
    ]
    assert watch.look(100) == []
    there = dataclasses.replace(CPU, workers=3, cores=144, memory_mb=540_000)
    assert watch.settle(pools=(there,)) == ["Pool cpu: 3 workers there (144 cores, 540 GB)."]
    assert watch.look(1000) == []


def test_a_pool_that_is_up_at_once_says_one_line():
    """A local worker that joins within the settling time is not announced twice."""
    watch = Watch()
    assert watch.look(1, pools=(dataclasses.replace(CPU, starting=1),)) == []
    up = dataclasses.replace(CPU, workers=1, cores=2, memory_mb=8000, gpus=1)
    assert watch.settle(pools=(up,)) == ["Pool cpu: 1 worker there (2 cores, 8 GB, 1 GPU)."]


def test_a_pool_that_is_slow_to_start_is_said():
    """After ten seconds of silence a user hears that workers start."""
    watch = Watch()
    starting = dataclasses.replace(CPU, starting=2)
    assert watch.settle(pools=(starting,)) == []
    assert watch.look(10) == ["Pool cpu is coming up: 2 workers starting."]


def test_a_worker_lost_and_replaced_at_once_is_no_news_later():
    """What was given back as idle long afterwards is not said for the sake of that loss."""
    watch = Watch()
    two = dataclasses.replace(CPU, workers=2, cores=4, memory_mb=8000)
    assert len(watch.settle(pools=(two,))) == 1
    assert watch.settle(pools=(dataclasses.replace(two, lost=1),)) == []
    assert watch.look(40) == []
    assert watch.settle(pools=(dataclasses.replace(two, workers=1, cores=2, lost=1),)) == []
    (line,) = watch.look(40, pools=(dataclasses.replace(two, workers=1, cores=2, lost=2),)) or watch.look(40)
    assert line.endswith("2 lost so far.")


def test_many_workers_coming_one_by_one_say_few_lines():
    """Forty workers in forty steps of three seconds are not forty lines."""
    watch = Watch()
    lines = []
    for number in range(1, 41):
        pool = dataclasses.replace(CPU, workers=number, queued=40 - number, cores=number, memory_mb=number)
        lines += watch.look(3, pools=(pool,))
    lines += watch.look(60)
    assert 2 <= len(lines) <= 7
    assert "40 workers there" in lines[-1]


def test_a_flickering_pool_is_said_once():
    """A worker that comes and goes within the settling time is no news."""
    watch = Watch()
    two = dataclasses.replace(CPU, workers=2, cores=8, memory_mb=1000)
    three = dataclasses.replace(two, workers=3)
    watch.settle(pools=(two,))
    assert [line for pool in [three, two] * 30 for line in watch.look(1, pools=(pool,))] == []


def test_workers_given_back_when_idle_are_no_news():
    """A pool that shrinks while nothing waits for it is silent; one that loses workers is not."""
    watch = Watch()
    four = dataclasses.replace(CPU, workers=4, cores=8, memory_mb=1000)
    watch.settle(pools=(four,))
    assert watch.settle(pools=(dataclasses.replace(four, workers=1, cores=2),)) == []
    lost = dataclasses.replace(four, workers=0, cores=0, lost=1)
    assert watch.settle(pools=(lost,)) == ["Pool cpu: no worker there, 1 lost so far."]


def test_what_is_waited_for_is_said_once_and_again_when_it_changes():
    """The sentence comes after half a minute of silence, again for another reason or twice the jobs, never else."""
    watch = Watch()
    pool = dataclasses.replace(CPU, queued=2, queued_since=900.0, queue_reason="Priority")
    watch.settle(pools=(pool,), waiting=(MEMORY,), waits=12)
    assert watch.look(20) == []
    line = (
        "12 jobs wait for memory in pool cpu: they need 64 GB, the worker with most room has 32 GB free; "
        "2 allocations are queued since T900, reason Priority (others come first in this queue: fewer or smaller "
        "workers may start in between)."
    )
    assert watch.look(20) == [line]
    assert [line for _ in range(500) for line in watch.look(10)] == []
    more = dataclasses.replace(MEMORY, jobs=15)
    assert watch.look(10, waiting=(more,)) == []
    assert len(watch.look(10, waiting=(dataclasses.replace(MEMORY, jobs=30),))) == 1
    down = dataclasses.replace(pool, queue_reason="PartitionDown")
    (line,) = watch.look(10, pools=(down,))
    assert "reason PartitionDown (this queue starts nothing now" in line
    assert watch.look(10, pools=(down,)) == []


def test_progress_keeps_the_reasons_silent():
    """While jobs end, nobody asks what the others wait for; full workers are news only after minutes."""
    watch = Watch()
    for _ in range(100):
        assert watch.look(20, waiting=(MEMORY,), waits=12, last_progress=watch.now) == []
    assert watch.look(100, running=4) == []
    assert len(watch.look(300, running=4)) == 1


def test_a_reason_that_comes_back_soon_is_not_repeated():
    """Between two ends of long jobs the same wait is one wait; after a long time without it, it is news."""
    watch = Watch()
    assert len(watch.look(40, waiting=(MEMORY,), waits=12)) == 1
    watch.look(5, waiting=(), waits=0, last_progress=watch.now)
    assert watch.look(60, waiting=(MEMORY,), waits=12) == []
    watch.look(5, waiting=(), waits=0, last_progress=watch.now)
    for _ in range(40):
        watch.look(10)
    assert len(watch.look(40, waiting=(MEMORY,), waits=12)) == 1


def blocker(**changes) -> Blocker:
    fields = {
        "pool": "cpu",
        "names": ("align",),
        "count": 12,
        "short": ("memory",),
        "need": {"memory": 64_000, "cores": 2},
        "free": {"memory": 32_000, "cores": 4},
        "frees_at": 700.0,
    }
    return Blocker(**{**fields, **changes})


def test_blockers_become_sentences():
    """What is short is said with need, what is free, and when there is room."""
    (state,) = waiting_states([blocker()], now=100.0)
    assert waiting_line(state, CPU) == (
        "12 jobs (align) wait for memory in pool cpu: they need 64 GB, the worker with most room has 32 GB free, "
        "there is room in about 10 min at the latest."
    )


def test_alike_blockers_are_one_sentence():
    """Classes that wait for the same thing are counted together; the largest need stands for all."""
    small = blocker(names=("sort",), count=3, need={"memory": 40_000})
    (state,) = waiting_states([small, blocker(), blocker(short=())], now=100.0)
    assert state.jobs == 15
    assert state.rules == ("sort", "align")
    assert "they need up to 64 GB" in state.detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"short": ("worker",), "free": {}, "need": {"cores": 2}, "frees_at": None}, "wait for a worker in pool cpu."),
        ({"short": ("cores", "memory")}, "wait for cores and memory"),
        (
            {"short": ("gpus",), "need": {"gpus": 1}, "free": {}},
            "they need 1 GPU, the worker with most room has 0 GPUs",
        ),
        ({"short": ("licences",), "need": {"licences": 3}, "free": {"licences": 1}}, "they need 3 licences"),
        ({"short": ("reserved",), "reserved_for": "big"}, "kept for a job of rule big"),
        ({"short": ("fresh",)}, "wait for a fresh allocation"),
        ({"short": ("life",)}, "wait for an allocation that lasts long enough"),
    ],
)
def test_each_kind_of_blocker_reads_well(changes, words):
    """Every word that `blockers` uses has its English."""
    (state,) = waiting_states([blocker(**changes)], now=100.0)
    assert words in waiting_line(state, CPU)


def test_the_table_shows_everything():
    """Pools, workers with what they run and have free, and reasons, in aligned columns without control characters."""
    model = RunModel(
        [
            at(0, "allocation-submitted", worker="cpu-9", pool="cpu", allocation="1"),
            at(0, "allocation-waiting", worker="cpu-9", pool="cpu", reason="Priority"),
            joined(0, devices=("0", "1"), remaining_s=7200.0),
            queued(0, 1, memory_mb=3000),
            queued(0, 2, memory_mb=3000, rule="evil\x1b[31m\nrule"),
            queued(0, 3, memory_mb=64_000),
            placed(1, 1),
            placed(1, 2, rule="evil\x1b[31m\nrule"),
            at(2, "pool-given-up", pool="gpu", reason="sbatch: invalid account"),
        ]
    )
    text = table(snapshot(model, 60.0, [MEMORY]))
    assert "Run  at T60, for 1m: 3 jobs so far: 0 done, 2 running, 1 waiting." in text
    assert re.search(r"^cpu-0 +n1 +0 of 4 +2 GB of 8 GB +2 of 2 +1h59m +a, evil rule$", text, re.MULTILINE)
    assert "1 allocation is queued since T0, reason Priority" in text
    assert "given up: sbatch: invalid account" in text
    assert "12 jobs wait for memory in pool cpu" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_waiting_jobs_without_a_reason_still_show():
    """Whoever only has the log sees that jobs wait, and whether a worker is there."""
    assert snapshot(RunModel([queued(0)])).waiting == (WaitingState("", 1, "a worker"),)
    assert snapshot(RunModel([joined(0), queued(0)])).waiting == (WaitingState("", 1, "room"),)


def test_reasons_come_from_the_log_for_a_second_terminal():
    """The `waiting` event holds what the driver knew."""
    log = [*(queued(0, job) for job in range(12)), at(1, "waiting", blockers=[MEMORY])]
    assert snapshot(RunModel(log)).waiting == (MEMORY,)


def test_after_the_end_nothing_waits_or_is_there():
    """The last `waiting` event may be older than the end; workers were given back, though no event says so."""
    log = [queued(0), joined(0), at(1, "waiting", blockers=[MEMORY]), placed(2), ended(3), at(4, "run-ended")]
    text = table(snapshot(RunModel(log)))
    assert "WAITING\n" not in text
    assert "HOST" not in text
    assert re.search(r"^cpu +0 +0 +0 +given back$", text, re.MULTILINE)


def test_a_pool_whose_workers_went_has_been_started():
    """It had workers that were idle and given back."""
    log = [joined(0), at(1, "worker-leaving", worker="cpu-0", pool="cpu", reason="idle")]
    assert table(snapshot(RunModel(log))).splitlines()[-1].endswith("given back")


def test_the_end_line():
    """Jobs, attempts, lost workers, core-hours used of those held, and the time waited for allocations."""
    model = RunModel(
        [
            at(0, "allocation-submitted", worker="cpu-0", pool="cpu", allocation="1"),
            {**queued(0), "pool": "cpu"},
            joined(60, cores=4),
            placed(60),
            ended(3660, status="failed", started=60.0, ended=3660.0, cpu_s=3600.0),
            at(3660, "worker-lost", worker="cpu-0", pool="cpu", reason="x", planned=False),
            at(3660, "run-ended"),
        ]
    )
    assert end_line(model) == (
        "Dask: 1 job (1 failed) in 1 attempt, 1 worker lost, jobs used 2 of 4 core-hours held "
        "(50%, with their CPUs at work in 50%), 1m waited for allocations."
    )


def test_the_end_line_after_an_interruption():
    """Jobs that were stopped have not failed, and those that waited were not started."""
    log = [queued(0), queued(0, 2), joined(0), placed(1), ended(5, status="cancelled")]
    line = end_line(RunModel([*log, at(5, "job-dropped", keys=["a-run-2-1.1"]), at(6, "run-ended")]))
    assert line.startswith("Dask: 2 jobs (1 stopped, 1 not started) in 1 attempt")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((7200.0, 14400.0), "2 of 4 core-hours"),
        ((540.0, 756.0), "0.15 of 0.21 core-hours"),
        ((30.0, 359.0), "0.5 of 5.98 core-minutes"),
        ((0.14, 5.0), "0.14 of 5 core-seconds"),
        ((0.0, 0.05), "0 of 0.05 core-seconds"),
    ],
)
def test_core_time_has_a_unit_that_suits_it(seconds, words):
    """A tiny run is not told to have used nothing of nothing."""
    assert core_times(*seconds) == words


def test_the_end_line_of_a_run_that_did_nothing():
    """No division by nothing, no words about nothing."""
    assert end_line(RunModel()) == "Dask: 0 jobs in 0 attempts."


@given(st.text())
def test_clean_text_harms_no_terminal(text):
    """Whatever a log or a rule's name holds: one line, no control characters, and it can be written as UTF-8."""
    cleaned = clean(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", cleaned)
    cleaned.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", clean_block(text))


def test_terminal_sequences_leave_no_rest():
    """Colours and titles go as a whole, tabs become spaces, undecodable bytes are shown."""
    assert clean("\x1b[1;31mred\x1b[0m\x1b]0;title\x07\tx\udcff") == "red    x\\udcff"


def test_what_other_runs_hold_is_not_free_and_not_charged():
    """On a cluster that stays: seen at the worker, and no part of what this run held."""
    held = {"cores": 2, "memory_mb": 1000, "gpus": 0, "jobs": 2}
    log = [joined(0), queued(0), placed(0), at(10, "others-held", held={"cpu-0": held})]
    model = RunModel([*log, at(20, "others-held", held={"cpu-0": dict.fromkeys(held, 0)}), ended(100)])
    (before,), (worker,) = snapshot(RunModel(log[:3])).workers, snapshot(RunModel(log)).workers
    assert (before.cores_free - worker.cores_free, worker.others) == (2, 2)
    assert snapshot(model).workers[0].others == 0
    assert "2 jobs of other runs" in table(snapshot(RunModel(log)))
    assert integral(RunModel([*log[:3], ended(100)])).cores - integral(model).cores == 20
