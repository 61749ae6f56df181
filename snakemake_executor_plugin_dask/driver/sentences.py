"""What a run says to its user of jobs, workers and pools; each thing that holds for many of them is said once."""

import os
from collections import Counter
from collections.abc import Callable

from snakemake_executor_plugin_dask.decide.ledger import END_BEFORE_S
from snakemake_executor_plugin_dask.driver.members import Member
from snakemake_executor_plugin_dask.model.jobs import JobSpec, Outcome, job_text
from snakemake_executor_plugin_dask.model.messages import Level
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.units import count, format_duration
from snakemake_executor_plugin_dask.node.mounts import own_file_system
from snakemake_executor_plugin_dask.observe.wording import clean, short_id

_OFTEN = 5  # preempted allocations of a pool, after which it is said what that means


class Teller:
    """Says it, and remembers what was said."""

    def __init__(self, say: Callable[[Level, str], None]) -> None:
        self._say = say
        self._told: set[tuple[str, str]] = set()  # kinds of sentence, and what they are about
        self._preempted = Counter[str]()  # by pool: how many allocations
        self._failures: dict[str, str] = {}  # by pool: why its last worker did not come up

    def _once(self, kind: str, about: str, text: str) -> None:
        if (kind, about) not in self._told:
            self._told.add((kind, about))
            self._say("warning", text)

    def warn(self, text: str) -> None:
        """A warning, each time."""
        self._say("warning", text)

    def from_worker(self, text: str) -> None:
        """What workers want to be told; each of them says it."""
        self._once("from worker", text, text)

    def waived_margin(self, rule: str, runtime_s: float, pool: Pool) -> None:
        """A rule's runtime leaves no margin, once."""
        self._once(
            "waived margin",
            rule,
            f"Rule {rule} asks for runtime={format_duration(runtime_s)}, which leaves no margin in pool "
            f"{pool.name}'s walltime of {format_duration(pool.walltime_s or 0)}: its jobs wait for new "
            f"allocations, and are ended {END_BEFORE_S:.0f} s before these end.",
        )

    def own_end(self, rule: str, runtime_s: float, remaining_s: float) -> None:
        """The allocation around Snakemake ends before a job, once."""
        self._once(
            "own end",
            "",
            f"Rule {rule} asks for runtime={format_duration(runtime_s)}, and the allocation in which "
            f"Snakemake runs ends in {format_duration(round(max(0.0, remaining_s)))}: jobs are ended "
            f"{END_BEFORE_S:.0f} s before it.",
        )

    def outlived(self, spec: JobSpec, runtime_s: float | None) -> None:
        """A job without enough time in its allocation gets one more."""
        self.warn(
            f"Job {short_id(spec.jobid)}, {_named(spec)}, did not end within its allocation's life; it "
            f"{_declares(runtime_s)}. It is run once more, in a fresh allocation."
        )

    def runs_again(self, spec: JobSpec, why: str) -> None:
        """After a loss."""
        self.warn(f"Job {short_id(spec.jobid)}, {_named(spec)}, runs again: {why}. Its earlier processes are dead.")

    def worker_joined(self, member: Member) -> None:
        """What is wrong with it, once for its pool."""
        assert member.facts is not None
        self._failures.pop(member.pool.name, None)
        for kind in ("too_few", "cold"):
            if text := getattr(member.facts, kind):
                self._once(kind, member.pool.name, f"Pool {member.pool.name}: {text}")

    def worker_lost(self, member: Member, why: str, jobs: int, *, told: bool) -> None:
        """``told``: something else says it already."""
        ran = f"; {count(jobs, 'job')} ran on it" if jobs else ""
        who = named(member)
        self._say("debug" if told else "warning", f"{who[0].upper()}{who[1:]} was lost: {why}{ran}.")

    def last_words(self, member: Member) -> None:
        """How the batch system ended its allocation."""
        where = f"Worker {member.name} was in allocation {member.process.allocation_id}"
        self.warn(f"{where}, whose output ends with: {member.ended}")

    def preempted(self, member: Member) -> None:
        """And what that means, where it happens often."""
        pool = member.pool.name
        self._preempted[pool] += 1
        text = f"Worker {member.name} was in allocation {member.process.allocation_id}, which was preempted"
        text += f", says {member.ended}" if member.ended else ""
        if self._preempted[pool] == 1:
            text += ". Such losses do not count against --dask-lost-worker-retries"
        self.warn(f"{text}.")
        if self._preempted[pool] == _OFTEN:
            self.warn(
                f"Pool {pool}: {_OFTEN} allocations were preempted so far. Their jobs run again however often this "
                "happens; a queue or QOS that is not preempted, or shorter jobs, would lose less work."
            )

    def pool_failed(self, pool: Pool, why: str) -> None:
        """The same reason again is for the log alone."""
        again = self._failures.get(pool.name) == why
        self._failures[pool.name] = why
        self._say("debug" if again else "warning", f"A worker of pool {pool.name} did not come up: {why}")
        if pool.kind.queued and (kind := own_file_system(directory := os.getcwd())):
            self._once(
                "own file system",
                "",
                f"The working directory {directory} is on a file system that is local to this host ({kind}): workers "
                "on other nodes see it only if this host exports it. Run where the nodes share a file system.",
            )

    def nodes_closed(self, pool: Pool, why: str) -> None:
        """No more companions are started."""
        self._say("error", f"Pool {pool.name}: the nodes of its workers take no Dask workers of jobs: {why}")

    def pool_given_up(self, pool: Pool, why: str) -> None:
        """No more workers are asked for."""
        self._say("error", f"Pool {pool.name} is given up: its workers do not come up. The last reason: {why}")


def named(member: Member) -> str:
    """A worker, or the node of a wide one, as people know it."""
    if member.wide is None:
        return f"worker {member.name}"
    return f"node {member.process.node} of worker {member.wide.name}"


def _named(spec: JobSpec) -> str:
    return clean(job_text(spec.name, spec.wildcards, spec.members), 300)


# Why a job has failed, where its outcome alone does not say it.


def _declares(runtime_s: float | None) -> str:
    return "declares no runtime" if runtime_s is None else f"declares runtime={format_duration(runtime_s)}"


def ended_with_snakemakes_allocation(rule: str, runtime_s: float | None, outcome: Outcome) -> str:
    """There is no longer one to run it again in."""
    return (
        f"Rule {rule} {_declares(runtime_s)}, and its job did not end within the life of the allocation in which "
        f"Snakemake runs ({outcome.ended - outcome.started:.0f} s): start Snakemake in a longer one."
    )


def ended_with_its_allocation(rule: str, runtime_s: float | None, outcome: Outcome, pool: Pool, *, twice: bool) -> str:
    """``twice``: also in a fresh one."""
    lives = "two allocations" if twice else "a new allocation"
    last = " the last time" if twice else ""
    change = "declare runtime, or give" if runtime_s is None else "give"
    return (
        f"Rule {rule} {_declares(runtime_s)}, and its job did not end within the life of {lives} "
        f"({outcome.ended - outcome.started:.0f} s{last}): {change} pool {pool.name} a longer walltime."
    )


def lost_too_often(losses: int, why: str, limit: int, *, alone: bool) -> str:
    """``alone``: the last time without neighbours."""
    suspect = ", the last time while no other job ran there: it is the likely cause" if alone else ""
    return f"It lost its worker {losses} times ({why}){suspect}. --dask-lost-worker-retries is {limit}."


def may_still_live(why: str, unknown: str) -> str:
    """Its end could not be seen."""
    return f"{why}, and {unknown}: it is not run again, since two attempts could then run at once."


def not_again(why: str) -> str:
    """It would have run again."""
    return f"{why}, and it is not run again, since no more jobs are started"
