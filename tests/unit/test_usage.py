"""The monitor's decisions about memory, on made-up process tables."""

from dataclasses import dataclass, field

import pytest

from snakemake_executor_plugin_dask.node.processes import Stat
from snakemake_executor_plugin_dask.worker.supervisor.usage import SLOW_S, STEADY_S, Monitor

MB = 10**6
SUPERVISOR = 10


@dataclass
class Fake:
    ppid: int
    held: int
    shares: int | None = None
    threads: int = 1
    session: int = 0
    snakemake: bool = False
    copy: bool = False
    key: str | None = None


@dataclass
class FakeSource:
    """Process tables as they are set; counts costly looks."""

    table: dict[int, Fake] = field(default_factory=dict)
    listed: int = 0
    looked_at_shares: int = 0
    version: int = 0

    def set(self, pid, *args, **kwargs):
        self.table[pid] = Fake(*args, **kwargs)
        self.version += 1

    def pids(self):
        self.listed += 1
        return list(self.table)

    def newest(self):
        return str(self.version).encode()

    def stat(self, pid):
        fake = self.table.get(pid)
        return fake and Stat(pid, fake.ppid, "S", fake.session or pid, fake.threads, 5)

    def open(self, pid):
        return None

    def resident_bytes(self, pid, descriptor):
        return self.table[pid].held if pid in self.table else None

    def held_bytes(self, pid):
        return self.table[pid].held if pid in self.table else None

    def share_bytes(self, pid):
        self.looked_at_shares += 1
        return self.table[pid].shares

    def is_snakemake(self, pid):
        return self.table[pid].snakemake

    def is_copy(self, pid, own):
        return self.table[pid].copy

    def key(self, pid):
        return self.table[pid].key


class Case:
    def __init__(self):
        self.source = FakeSource()
        self.source.set(1, 0, MB)
        self.source.set(SUPERVISOR, 1, MB)
        self.now = 0.0
        self.monitor = Monitor(self.source, SUPERVISOR, lambda: self.now)

    def add(self, pid=100, *, limit=None, direct=True, began=False, held=0, key="k", **keywords):
        self.source.set(pid, SUPERVISOR, held, **keywords)
        self.monitor.add(key, pid, limit, direct=direct, began=began)

    def look(self):
        """Look when it is due."""
        self.now = max(self.now, self.monitor.due())
        return self.monitor.look()


def test_own_snakemake_does_not_count():
    """What Snakemake held before its working thread appeared is the baseline."""
    case = Case()
    case.add(held=20 * MB, limit=100 * MB)
    case.look()
    case.source.set(100, SUPERVISOR, 70 * MB)
    case.look()
    case.source.set(100, SUPERVISOR, 150 * MB, threads=3)
    assert case.look() == []
    case.source.set(101, 100, 30 * MB)
    (excess,) = case.look()
    assert excess.current_bytes == 110 * MB
    assert case.monitor.remove("k") == 110 * MB


def test_own_snakemake_does_not_count_where_work_has_begun_at_the_first_look():
    """A group that is quick starts its first command before anybody looks."""
    case = Case()
    case.add(held=70 * MB, limit=50 * MB, threads=3)
    case.source.set(101, 100, 10 * MB)
    assert case.look() == []
    case.source.set(101, 100, 60 * MB)
    assert [excess.current_bytes for excess in case.look()] == [60 * MB]


def test_warm_child_counts_from_the_fork():
    """A forked child's inherited memory is the baseline at once."""
    case = Case()
    case.add(held=90 * MB, began=True, limit=50 * MB)
    assert case.look() == []
    case.source.set(100, SUPERVISOR, 145 * MB)
    assert [excess.current_bytes for excess in case.look()] == [55 * MB]


def test_snakemake_under_a_job_script_is_found():
    """In a custom job script the own Snakemake is a descendant of the leader."""
    case = Case()
    case.add(held=MB, direct=False)
    case.source.set(101, 100, 60 * MB, snakemake=True)
    case.look()
    case.source.set(102, 101, 10 * MB)
    case.look()
    assert case.monitor.remove("k") == 11 * MB


def test_a_fork_that_is_not_its_command_yet_does_not_count():
    """A child that still holds what the job's own Snakemake holds exceeds no limit; what it becomes is counted."""
    case = Case()
    case.add(held=90 * MB, began=True, limit=50 * MB)
    case.source.set(101, 100, 91 * MB, copy=True)
    assert case.look() == []
    case.source.set(101, 100, 40 * MB)
    assert case.look() == []
    case.source.set(101, 100, 60 * MB)
    assert [excess.current_bytes for excess in case.look()] == [60 * MB]


def test_shared_pages_count_once():
    """Ten processes that share 80 MB hold 80 MB and not 800."""
    case = Case()
    case.add(began=True, limit=200 * MB)
    for pid in range(101, 111):
        case.source.set(pid, 100, 80 * MB, shares=8 * MB)
    assert case.look() == []
    assert case.monitor.remove("k") == 80 * MB


def test_orphans_are_found_by_session_and_by_environment():
    """A process that came to the supervisor belongs to the job whose session or key it carries; others to none."""
    case = Case()
    case.add(began=True)
    case.source.set(201, SUPERVISOR, 5 * MB, session=100)
    case.source.set(202, SUPERVISOR, 6 * MB, key="k")
    case.source.set(203, 202, 7 * MB)
    case.source.set(204, SUPERVISOR, 8 * MB, key="other")
    case.source.set(205, 1, 9 * MB, key="k")
    case.look()
    assert case.monitor.remove("k") == 18 * MB


def test_two_jobs_are_kept_apart():
    """Each process counts for its own job."""
    case = Case()
    case.add(100, began=True, key="a")
    case.add(200, began=True, key="b", limit=10 * MB)
    case.source.set(101, 100, 50 * MB)
    case.source.set(201, 200, 5 * MB)
    assert case.look() == []
    assert case.monitor.key_of(101) == "a"
    assert (case.monitor.remove("a"), case.monitor.remove("b")) == (50 * MB, 5 * MB)


def test_looks_are_rare_far_from_the_limit_and_frequent_near_it():
    """The pause shrinks with the room that is left, and with growth."""
    case = Case()
    case.add(began=True, limit=4000 * MB)
    case.look()
    assert case.monitor.due() - case.now == pytest.approx(SLOW_S)
    case.source.set(100, SUPERVISOR, 3700 * MB)
    case.look()
    assert case.monitor.due() - case.now < 0.05
    case.look()
    assert case.monitor.due() - case.now == pytest.approx(0.15), "it does not grow any more"
    case.source.set(100, SUPERVISOR, 3995 * MB)
    case.look()
    case.look()
    assert case.monitor.due() - case.now == pytest.approx(STEADY_S)


def test_nothing_is_listed_while_no_process_is_made():
    """The process table is read again only when there is something new in it."""
    case = Case()
    case.add(began=True)
    for _ in range(5):
        case.look()
    assert case.source.listed == 1


def test_shares_are_not_looked_at_without_need():
    """A job that holds what it held costs no costly look."""
    case = Case()
    case.add(began=True, limit=500 * MB)
    for pid in range(101, 104):
        case.source.set(pid, 100, 40 * MB, shares=30 * MB)
    for _ in range(10):
        case.look()
    assert case.source.looked_at_shares == 4
    assert case.monitor.remove("k") == 90 * MB


def test_jobs_that_were_never_seen_have_no_peak():
    """A job too short to be looked at reports nothing rather than zero."""
    case = Case()
    case.add()
    assert case.monitor.remove("k") is None
    assert case.monitor.remove("k") is None
    assert case.monitor.due() is None


def test_a_process_that_ends_during_the_look_holds_nothing():
    """Its share is not to be had any more; what it held when it was last looked at must not count beside its parent."""
    case = Case()
    case.add(held=0, began=True, limit=250 * MB)
    case.source.set(101, 100, 150 * MB)
    case.source.set(102, 101, 150 * MB)

    def share_bytes(pid):
        if pid == 102:
            case.source.table[pid].held = 0  # a zombie
            return None
        return case.source.table[pid].held

    case.source.share_bytes = share_bytes
    assert case.look() == []
    assert case.monitor.remove("k") == 150 * MB
