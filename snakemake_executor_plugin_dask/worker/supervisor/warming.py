"""Warm starts: keeps a warm process, waits until it is ready, replaces it, and ends what a dead one left behind."""

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Mapping
from typing import Any

from snakemake_executor_plugin_dask.model.either import either
from snakemake_executor_plugin_dask.model.job_messages import Cold, Exited, Forked, Said, Spawned, Stale, Warm
from snakemake_executor_plugin_dask.model.jobs import RunSetup
from snakemake_executor_plugin_dask.model.shellcommand import Shell
from snakemake_executor_plugin_dask.node import processes
from snakemake_executor_plugin_dask.worker.supervisor.attempt import Attempt, note
from snakemake_executor_plugin_dask.worker.supervisor.ending import WARM_ENDED, Endings
from snakemake_executor_plugin_dask.worker.supervisor.first import StartedWarm, wants_warm
from snakemake_executor_plugin_dask.worker.supervisor.warmlink import WarmProcess, shallow, shallow_command

_READY_S = 60.0  # a job waits so long for the workflow to have been read
ANSWER_S = 30.0  # a warm process that says nothing for so long hangs, unless the kernel holds it
LOOKS = 6  # in that time; so it does not count while this process itself is stopped
_LEAVE_S = 2.0  # for the exit functions of a workflow
_RESTARTS = 3  # within
_FORGOTTEN_S = 3600.0
_ENDED = "the warm process ended"


class Warming:
    """The warm process of a run on this worker, and its successors. Jobs for which there is none are started cold."""

    def __init__(
        self,
        endings: Endings,
        started: Callable[..., None],
        say: Callable[[str], None] = note,
        directory: str | None = None,
        *,
        make: Callable[..., WarmProcess] = WarmProcess,
        answer_s: float = ANSWER_S,
        ready_s: float = _READY_S,
    ) -> None:
        """``started(attempt, pid, direct=…, began=…)`` is called for each job that the warm process started.

        ``direct``: the process is the job's Snakemake, else its shell. ``began``: its own function runs at once.
        ``say`` tells the user. ``directory``: for what a warm process leaves where it is killed. ``make`` starts one.
        """
        self._endings = endings
        self._started = started
        self._say = say
        self._directory = directory
        self._make, self._answer_s, self._ready_s = make, answer_s, ready_s
        self._not_read = f"the workflow was not read within {ready_s:.0f} s"
        self._setup: RunSetup | None = None
        self._environment: Mapping[str, str] = {}
        self._current: WarmProcess | None = None
        self._ended: list[float] = []  # when warm processes did lately, by the loop's clock
        self._why_cold = ""  # why there is no warm process, though the run wants one
        self._burials: set[asyncio.Task[Any]] = set()

    def ahead(self, spawned: StartedWarm) -> None:
        """Care for a warm process of a run that is about to come: `begin` follows, or `close`."""
        self._launch_with(None, spawned)

    def begin(self, setup: RunSetup, environment: Mapping[str, str], spawned: StartedWarm | None = None) -> None:
        """Start the warm process, if the run is to have one. ``spawned``: it was started already."""
        ahead, self._environment = self._current, environment
        if not wants_warm(setup):
            if ahead is not None:
                ahead.kill()
            return
        self._setup = setup
        if ahead is not None:
            ahead.tell(setup)
        else:
            self._launch(spawned)

    def close(self) -> None:
        """No more jobs come. A warm process ends once it has none."""
        self._setup = None
        for warm in self._endings.warms.values():
            warm.close()

    async def end(self) -> None:
        """Once there are no jobs: no more warm process, when it has done what the workflow wants done at the end."""
        warms = list(self._endings.warms.values())
        leaving = [asyncio.ensure_future(warm.reaped.wait()) for warm in warms if warm.ready]
        if leaving:
            await asyncio.wait(leaving, timeout=_LEAVE_S)
        for waiter in leaving:
            waiter.cancel()
        self.kill()

    def kill(self) -> None:
        """End every warm process, with its jobs."""
        for warm in self._endings.warms.values():
            warm.kill()

    async def shell(self, current: Attempt) -> Shell | None:
        """How its command, if it is one alone, can be started without a Snakemake; None where it cannot."""
        warm = await self._ready(current)
        return None if warm is None else warm.shell

    async def start(self, current: Attempt) -> bool:
        """Start an attempt from the warm process. False: it has to be started cold."""
        warm = await self._ready(current)
        if warm is None or current.verdict is not None:
            return False
        current.warm = warm
        warm.start(dataclasses.replace(current.spec, log_path=current.log))
        await self._answered(warm, current)
        refusal = await current.answer
        if refusal is None:
            return True
        current.warm, current.start_reason = None, refusal
        if current.spec.ended is not None:  # it was started long before
            return False
        current.notes.append(f"not started warm: {refusal}")
        # What holds for all jobs, or for all of a kind, was said once it was ready; its end is an accident.
        if refusal not in (warm.reason, warm.dag_reason, _ENDED):
            self._say(f"Some jobs start {shallow(0, refusal)}")
        return False

    async def _answered(self, warm: WarmProcess, current: Attempt) -> None:
        """Wait for the answer. A warm process that says nothing, of other jobs either, is ended with its jobs."""
        words, looks = warm.words, 0
        while not (await asyncio.wait({current.answer}, timeout=self._answer_s / LOOKS))[0]:
            state = processes.state_of(warm.pid)
            if state == "T":
                processes.send([warm.pid], signal.SIGCONT)  # a job has stopped it
            # While a file server keeps it from answering, its jobs have done nothing that they should be ended for.
            if warm.words != words or state == "D":
                words, looks = warm.words, 0
            elif (looks := looks + 1) >= LOOKS:
                warm.kill()
                return

    def _launch(self, spawned: StartedWarm | None = None) -> None:
        self._current = None
        if self._setup is None:
            return
        try:
            self._launch_with(self._setup, spawned)
        except OSError as error:
            self._give_up(f"no warm process could be made ({error.strerror or error})")

    def _launch_with(self, setup: RunSetup | None, spawned: StartedWarm | None) -> None:
        self._current = self._make(setup, self._environment, self._hear, self._directory, spawned)
        self._endings.warms[self._current.pid] = self._current

    def _give_up(self, reason: str) -> None:
        self._why_cold = reason
        self._say(f"Jobs start {shallow(0, reason)}")

    async def _ready(self, current: Attempt) -> WarmProcess | None:
        """The warm process, once it has read the workflow; None where this job cannot be started from one."""
        if current.spec.start != "warm" or current.spec.script is not None:
            return None
        if (warm := self._current) is not None and warm.settled.is_set() and warm.ready and not warm.gone:
            return warm
        if current.start_reason == self._not_read:
            return None  # it has waited before
        try:
            async with asyncio.timeout(self._ready_s):
                while (warm := self._current) is not None and not warm.settled.is_set():
                    if current.stopping.is_set():
                        return None
                    await either(warm.settled.wait(), current.stopping.wait())
        except TimeoutError:
            current.start_reason = self._not_read
            current.notes.append(f"not started warm: {current.start_reason}")
            self._say(f"Some jobs start {shallow(0, current.start_reason)}")
            return None
        if warm is not None and warm.ready and not warm.gone:
            return warm
        current.start_reason = self._why_cold
        return None

    def _hear(self, warm: WarmProcess, message: object) -> None:
        match message:
            case Warm(depth, reason, dag_reason, shell, shell_reason):
                warm.reason, warm.dag_reason, warm.shell, warm.ready = reason, dag_reason, shell, True
                warm.settled.set()
                if reason:
                    self._say(f"Jobs start {shallow(depth, reason)}")
                if shell_reason:
                    self._say(shallow_command(shell_reason))
                if dag_reason:
                    self._say(f"Group jobs, and others that need a DAG, start {shallow(0, dag_reason)}")
            case Forked(key, pid, depth, reason):
                self._has_process(warm, key, pid, depth, reason)
            case Spawned(key, pid):
                self._has_process(warm, key, pid, 3, is_command=True)
            case Exited(key, status, cpu_s):
                if (current := self._job_of(warm, key)) is not None and not current.leader.done():
                    current.cpu_s += cpu_s
                    current.leader.set_result(status)
            case Cold(key, reason):
                warm.unanswered.discard(key)
                if (current := self._job_of(warm, key)) is not None:
                    _answer(current, reason)
            case Stale(reason) if warm is self._current:
                note(f"the warm process is replaced: {reason}")
                warm.close()
                self._launch()
            case Said(text):
                self._say(text)
            case None:
                self._gone(warm)

    def _job_of(self, warm: WarmProcess, key: str) -> Attempt | None:
        """An attempt that was handed to this warm process, if it has not ended."""
        current = self._endings.attempts.get(key)
        return current if current is not None and current.warm is warm else None

    def _has_process(
        self, warm: WarmProcess, key: str, pid: int, depth: int, reason: str = "", *, is_command: bool = False
    ) -> None:
        """``depth`` and ``reason``: see `Forked`. ``is_command``: the process is the job's shell."""
        warm.unanswered.discard(key)
        current = self._endings.attempts.get(key)
        if current is None:
            processes.send([pid], signal.SIGKILL)
            return
        current.start, current.is_command = "warm", is_command
        possible = 3 if current.spec.call is not None else 2
        current.start_depth = depth or None
        current.start_reason = reason or (warm.reason if depth < possible else "")
        self._started(current, pid, direct=not is_command, began=depth > 2)
        _answer(current, None)

    def _gone(self, warm: WarmProcess) -> None:
        if warm is self._current:
            now = asyncio.get_running_loop().time()
            self._ended = [*(ended for ended in self._ended if now - ended < _FORGOTTEN_S), now]
            self._current = None
            if self._setup is None:  # no more jobs come
                pass
            elif not warm.ready:  # it would not be the next time, either
                self._give_up("the warm process ended before it was ready")
            elif len(self._ended) > _RESTARTS:
                self._give_up(f"the warm process ended {len(self._ended)} times within an hour")
            else:
                self._launch()
        task = asyncio.create_task(self._bury(warm))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    async def _bury(self, warm: WarmProcess) -> None:
        """End what a warm process leaves behind: its jobs, and a child of which it could not tell any more."""
        await warm.reaped.wait()
        for current in list(self._endings.attempts.values()):
            if current.warm is warm and current.pid:
                self._endings.stop(current, "lost", WARM_ENDED, grace_s=0.0)
        if warm.unanswered:
            # Their processes may run already, with their keys; a second start must not meet them.
            while left := self._endings.left_by_warm(warm.unanswered):
                processes.send(left, signal.SIGKILL)
                await self._endings.something_ended()
        for key in warm.unanswered:
            if (unanswered := self._job_of(warm, key)) is not None:
                _answer(unanswered, _ENDED)


def _answer(current: Attempt, refusal: str | None) -> None:
    if not current.answer.done():
        current.answer.set_result(refusal)
