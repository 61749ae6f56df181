"""Brakes on submitting, the record of what was submitted, and cancelling what a dead run left behind.

`Brakes` is pure. `Record` appends to a file. `cancel_run` and `cancel_recorded` run the batch system's commands.
Imports nothing of Dask: Snakemake's own process cancels with it when the driver is gone.
"""

import json
import os
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from snakemake_executor_plugin_dask.batch.answers import confirmed, is_cluster, is_id, look, undisturbed, unlisted
from snakemake_executor_plugin_dask.model.batch_systems import SYSTEMS, BatchSystem
from snakemake_executor_plugin_dask.model.batch_systems.listings import Seen
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.private import append_private, read_private

_NOT_FOUND = 127  # as shells say it
TIMED_OUT = 124  # the exit code of a command that did not answer, as of timeout(1)
RECORD = "allocations.jsonl"
_NAME = re.compile(r"snakemake-[A-Za-z0-9_.-]{1,200}")
_QUERY_TIMEOUT_S = 30.0


#: What to expect of another try: the same refusal each time, a start once something has passed, or nobody knows.
Outlook = Literal["final", "passing", "unknown"]


@dataclass(slots=True)
class Brakes:
    """How many allocations of one pool may be asked for now. Times are monotonic seconds passed in.

    After a failure the next try waits, twice as long after each; one worker that joins sets it back. After several
    failures in a row the pool is given up: the sooner, the surer it is that the next would be one too. Two allocations
    that fail at once count as one try.
    """

    queued_max: int = 3
    failures_max: int = 5
    final_max: int = 2
    passing_max: int = 12  # half an hour
    delay_first_s: float = 5.0
    delay_max_s: float = 300.0
    failures: int = 0
    given_up: bool = False
    not_before: float = float("-inf")  # when the next one may be submitted

    def allowed(self, wanted: int, queued: int, now: float, up: int = 0) -> int:
        """So many of ``wanted`` may be submitted, while ``queued`` have not joined and ``up`` work.

        After a failure: one. A pool of a thousand would take hours to come up three at a time, so a quarter of what
        works may queue.
        """
        if self.given_up or now < self.not_before:
            return 0
        room = max(self.queued_max, up // 4) if self.failures == 0 else 1
        return max(0, min(wanted, room - queued))

    def failed(self, now: float, outlook: Outlook = "unknown", *, up: int = 0, elsewhere: bool = True) -> None:
        """An allocation could not be submitted, or was gone before its worker joined.

        ``up``: workers of the pool that are there; while jobs can run on these, the pool is not given up for want of
        further ones. ``elsewhere``: whether the waiting jobs fit in another pool; where they do not, what may pass is
        waited for.
        """
        if now < self.not_before:
            return  # it was submitted together with the one that failed before
        self.failures += 1
        self.not_before = now + min(self.delay_max_s, self.delay_first_s * 2 ** (self.failures - 1))
        most = self.failures_max
        if outlook == "final":
            most = self.final_max
        elif outlook == "passing" and not elsewhere:
            most = self.passing_max
        self.given_up = self.given_up or (self.failures >= most and not up)

    def try_again(self) -> None:
        """One more, at once: what was in the way may be gone. Its failure counts beside those before."""
        self.given_up, self.not_before = False, float("-inf")

    def joined(self) -> None:
        """A worker came up: earlier failures are over."""
        self.failures, self.not_before = 0, float("-inf")


# The record


class Entry(NamedTuple):
    """One allocation as recorded; ``id`` is None while its submission was not known to have ended."""

    name: str  # of the allocation, snakemake-<run>-<pool>
    worker: str
    system: str
    where: str | None
    id: str | None


class Record:
    """The allocations of a run, in `<state_dir>/allocations.jsonl`, so that others can cancel them.

    Each line is on disk before the call returns: what is not recorded is not cancelled after this host dies.
    """

    def __init__(self, state_dir: str | Path) -> None:
        self.path = Path(state_dir, RECORD)

    def submitting(self, worker: str, name: str, system: str, where: str | None) -> None:
        """Before the submit command runs: it may be cut off before the id is known."""
        self._append({"submitting": worker, "name": name, "system": system, "where": where})

    def submitted(self, worker: str, allocation_id: str) -> None:
        """The submit command gave an id; or the batch system a new one."""
        self._append({"submitted": worker, "id": allocation_id})

    def gone(self, worker: str) -> None:
        """Nothing of it is left: it was refused, or was seen to be gone."""
        self._append({"gone": worker})

    def _append(self, line: Mapping[str, Any]) -> None:
        descriptor = append_private(self.path)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """What is not known to be gone. Raises OSError where the record is not this user's own, or cannot be read."""
        left: dict[str, Entry] = {}
        for line in self._lines():
            match line:
                case {"submitting": str(worker), "name": str(name), "system": str(system)}:
                    where = line.get("where")
                    if system in SYSTEMS and _NAME.fullmatch(name) and (where is None or is_cluster(where)):
                        left[worker] = Entry(name, worker, system, where, None)
                case {"submitted": str(worker), "id": str(number)} if worker in left:
                    if is_id(SYSTEMS[left[worker].system], number):
                        left[worker] = left[worker]._replace(id=number)
                case {"gone": str(worker)}:
                    left.pop(worker, None)
        return list(left.values())

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            text = read_private(self.path).decode(errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut off when the host died
            if isinstance(value, dict):
                yield value


def user_name() -> str:
    """As the batch system knows this user: not from the environment, which may say otherwise."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# Cancelling


class Ran(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def run_here(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = _QUERY_TIMEOUT_S
) -> Ran:
    """Run a short command; one that is missing or does not answer counts as failed, with the reason as its error."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False, env=undisturbed(os.environ if environment is None else environment),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ran(TIMED_OUT, "", f"{command[0]} did not answer within {timeout_s:.0f} s")
    except OSError as error:
        return Ran(_NOT_FOUND, "", f"{command[0]}: {error.strerror}")
    return Ran(done.returncode, done.stdout, done.stderr)


def cancel_run(
    state_dir: str | Path,
    *,
    timeout_s: float = 60.0,
    run: Callable[[Sequence[str]], Ran] = run_here,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Cancel what a run recorded and did not see go, until the queue says that it is gone; may be repeated.

    Returns a sentence for each allocation that may be left, with the command to cancel it.
    """
    record = Record(state_dir)
    left = record.entries()
    if not left:
        return []
    codes = {_cancel(entry, run) for entry in left}
    # Where the commands are not installed, waiting helps nothing.
    deadline = clock() + (0.0 if codes == {_NOT_FOUND} else timeout_s)
    while True:
        why, again = _still_there(left, run)
        for entry in left:
            if entry.worker not in why:
                record.gone(entry.worker)
            elif entry.worker in again:
                record.submitted(entry.worker, again[entry.worker])
        left = [entry._replace(id=again.get(entry.worker, entry.id)) for entry in left if entry.worker in why]
        if not left or clock() >= deadline:
            break
        sleep(1.0)
        for entry in left:
            _cancel(entry, run)
    return [
        f"allocation {entry.id or entry.name} may be left: {why[entry.worker]}; "
        f"cancel it with `{_shown_command(entry)}`"
        for entry in left
    ]


def cancel_unanswered(state_dir: str | Path, run: Callable[[Sequence[str]], Ran] = run_here) -> None:
    """At a run's end: cancel, by the name, what may have been queued though the submit command did not answer."""
    record = Record(state_dir)
    for entry in record.entries():
        if entry.id is None:
            _cancel(entry, run)
            record.gone(entry.worker)


def cancel_hints(state_dir: str | Path) -> dict[str, str]:
    """For each worker whose allocation a run did not see go: that allocation, and the command to cancel it."""
    return {
        entry.worker: f"allocation {entry.id or entry.name}; cancel it with `{_shown_command(entry)}`"
        for entry in Record(state_dir).entries()
    }


def cancel_recorded(state_root: Path) -> list[str]:
    """Cancel what dead runs of this directory left; ``state_root`` is `.snakemake/dask`.

    Call it while holding Snakemake's lock of the directory. Only what is known to be dead is cleared up after: of a run
    on another machine nobody here can tell. Returns sentences: what is left of dead runs, as `cancel_run` does, and
    what was not touched, with the commands for it.
    """
    sentences: list[str] = []
    for path, fate, former in state.former_runs(state_root):
        if fate == "alive":
            continue
        try:
            entries = Record(path).entries()
        except OSError as error:
            sentences.append(f"The record {path / RECORD} was left alone: {error.strerror or error}.")
            continue
        if not entries:
            continue
        if fate == "dead":
            sentences += cancel_run(path)
        else:
            where = f", on {former.host}," if former is not None else ""
            commands = ", ".join(f"`{_shown_command(entry)}`" for entry in entries)
            sentences.append(
                f"An earlier run in this directory{where} recorded allocations that were not seen to end. Whether it "
                f"still runs cannot be told from here, so they are left alone; cancel them with {commands}, and remove "
                f"{path}."
            )
    return sentences


def _cancel_command(entry: Entry) -> list[str] | None:
    system = SYSTEMS[entry.system]
    if entry.id is not None:
        return system.cancel(entry.id, entry.where)
    # All of the pool's allocations bear this name, and all of them are to go.
    return system.cancel_name(entry.name, entry.where) if system.cancel_name else None


def _shown_command(entry: Entry) -> str:
    return " ".join(_cancel_command(entry) or [])


def _cancel(entry: Entry, run: Callable[[Sequence[str]], Ran]) -> int:
    """The command's exit code; whether it worked is asked of the queue."""
    command = _cancel_command(entry)
    return 0 if command is None else run(command).code


def ask(
    system: BatchSystem, ids: Sequence[str], where: str | None, run: Callable[[Sequence[str]], Ran]
) -> dict[str, Seen]:
    """What the queue says of these allocations. One that is not listed is asked for again by its id."""
    answer = run(system.query(ids, user_name(), where))
    states = look(system, ids, *answer)
    if (again := unlisted(system, ids, answer.code, answer.out)) and system.confirm is not None:
        states |= confirmed(system, again, *run(system.confirm(again, where)))
    return states


def _still_there(
    entries: Sequence[Entry], run: Callable[[Sequence[str]], Ran]
) -> tuple[dict[str, str], dict[str, str]]:
    """By worker, why its allocation is not known to be gone, and the new id of one that was submitted once more.

    One without an id was cancelled by its name, where the batch system can; if it starts all the same, it finds no
    scheduler and ends.
    """
    queues: dict[tuple[str, str | None], list[Entry]] = {}
    for entry in entries:
        if entry.id is not None:
            queues.setdefault((entry.system, entry.where), []).append(entry)
    why, again = {}, {}
    for (name, where), queued in queues.items():
        ids = [entry.id or "" for entry in queued]
        system = SYSTEMS[name]
        states = ask(system, ids, where, run)
        for entry, number in zip(queued, ids, strict=True):
            seen = states[number]
            if seen.kind == "unknown":
                why[entry.worker] = f"the batch system does not say ({seen.reason})"
            elif seen.kind != "gone":
                why[entry.worker] = f"it is still {seen.kind}"
            elif is_id(system, seen.again):
                why[entry.worker] = f"{name} submitted it once more by itself"
                again[entry.worker] = seen.again
    return why, again
