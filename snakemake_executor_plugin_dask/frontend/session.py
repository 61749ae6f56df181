"""The executor's work: glue between Snakemake's scheduler and the driver process.

Snakemake's thread hands jobs over (`run_jobs`) and never waits. The link's reader thread reports what the driver
tells. A second thread notices what Snakemake does not tell an executor: that it has stopped starting jobs, after
SIGTERM or an error.
"""

import contextlib
import os
import queue
import signal
import threading
import traceback
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_dask.batch.allocations import cancel_hints, cancel_recorded
from snakemake_executor_plugin_dask.config.configure import configure_here
from snakemake_executor_plugin_dask.frontend.ahead import Graph, ready_next
from snakemake_executor_plugin_dask.frontend.driver_process import DriverLink, clean_up_after
from snakemake_executor_plugin_dask.frontend.failures import (
    explain,
    not_accepted_text,
    not_started_text,
    queue_text,
)
from snakemake_executor_plugin_dask.frontend.handover import Handover, group_members, members, wildcards
from snakemake_executor_plugin_dask.frontend.known import KnownJobs
from snakemake_executor_plugin_dask.frontend.launching import Ahead, launch, state_dir
from snakemake_executor_plugin_dask.frontend.unchecked import Unchecked
from snakemake_executor_plugin_dask.frontend.verdicts import Verdict, over, starts_no_more, unfit_directory, verdict
from snakemake_executor_plugin_dask.frontend.voice import Voice, as_error, as_errors
from snakemake_executor_plugin_dask.interior import (
    checks,
    snakemake_dag,
    snakemake_jobs,
    snakemake_scheduler,
    snakemake_settings,
)
from snakemake_executor_plugin_dask.kept import recognise
from snakemake_executor_plugin_dask.kept.place import is_name
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.jobs import job_text
from snakemake_executor_plugin_dask.model.messages import (
    Begin,
    Dropped,
    DropWaiting,
    Enqueue,
    Fatal,
    Finished,
    Later,
    QueuedJob,
    Say,
    ShowStatus,
    Started,
    Together,
)
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.updates import Ended
from snakemake_executor_plugin_dask.observe.wording import clean
from snakemake_executor_plugin_dask.settings import ExecutorSettings

_LOOK_EVERY_S = 0.5
_HANDED_OVER_AT_ONCE = 200  # jobs in a message: thousands would take as much memory again on both sides
_STOP_TIMEOUT_S = 120.0  # batch systems may take a while to confirm that an allocation is gone

#: What becomes of the files that a job updates; one that was not started has made nothing of them.
_UPDATED: Mapping[Verdict, Ended] = {
    "dropped": "accepted",
    "refused": "accepted",
    "succeeded": "accepted",
    "failed": "failed",
    "expected": "stopped",
}


def _label(job: Any) -> str:
    return clean(job_text(job.name, wildcards(job), group_members(job)), 300)


def report_submission(executor: Any, info: SubmittedJobInfo, *, over: bool = False) -> None:
    """Tell Snakemake that a job has a process; marks its outputs as incomplete.

    ``over``: it has succeeded by now, and so its outputs are not marked: Snakemake is about to record them.
    """
    if over:
        executor.report_job_submission(info, register_job=False)
        return
    try:
        info.job.register(external_jobid=info.external_jobid)
        marked = True
    except OSError:
        # A short job is over by now, and its own Snakemake took the mark away while it was made: once more. Where none
        # can be made at all, Snakemake says so.
        marked = False
    executor.report_job_submission(info, register_job=not marked)


class Session:
    """One run, from the executor's making to its end."""

    def __init__(self, executor: Any, ahead: Ahead) -> None:
        """Check settings and known jobs; WorkflowError before anything is started, but what was begun ``ahead``."""
        self._executor = executor
        self._workflow, self._dag = executor.workflow, executor.dag
        self._voice = Voice(executor.logger)
        interior = checks.of_snakemake()
        if interior.refusal:
            raise as_error(interior.refusal)
        if interior.warning:
            self._voice.warning(interior.warning)
        if interior.untried:
            self._voice.info(interior.untried)
        self._interior = interior
        # Who calls Snakemake's own API may give none.
        settings = executor.executor_settings or ExecutorSettings()
        if self._workflow.remote_execution_settings.immediate_submit:
            msg = (
                "--immediate-submit cannot work with the dask executor: jobs wait here until their input exists; "
                "omit it."
            )
            raise as_error(msg)
        kept = settings.scheduler if settings.scheduler and is_name(settings.scheduler) else None
        with as_errors():
            self._options, warnings = configure_here(replace(settings, scheduler=None) if kept else settings)
            if kept:
                self._options = recognise.named(kept, self._options, os.environ)
        for warning in warnings:
            self._voice.warning(warning)
        self._run_id = ahead.run_id
        self._lock = threading.Lock()
        self._jobs: dict[str, SubmittedJobInfo] = {}  # handed over, not finished
        self._keys: dict[Any, str] = {}  # of jobs that were handed over
        self._started: set[str] = set()
        self._dropped: list[Any] = []
        self._dropping = False
        self._failed = False  # a job for good, and without --keep-going
        self._ended = False
        self._kept = ""  # the name of the cluster that stays
        self._link: DriverLink | None = None
        self._ahead = ahead
        self._watcher: threading.Thread | None = None
        self._leave: Any = None  # Snakemake's own handler of SIGTERM
        self._told_to_leave = False  # before that handler, which another thread calls, and no job starts any more
        # Signal handlers put something in, too, where a lock that they interrupted would never be had.
        self._woken: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._state_dir = state_dir(self._run_id)
        if complaint := unfit_directory(self._state_dir):
            raise as_error(complaint)
        with as_errors():
            state.check(self._state_dir.parent)
        self._handover = Handover(executor, self._options, self._run_id, keeps_updated=interior.keeps_updated)
        self._unchecked = Unchecked(keep_logs=self._options.keep_successful_logs)
        self._known = KnownJobs(self._workflow, self._dag, self._options, interior, self._handover, self._voice)
        self._known.check(slurm_ignored=settings.pools is not None)

    # From Snakemake

    def run_jobs(self, jobs: Iterable[Any]) -> None:
        """Hand jobs over to the driver, which is started with the first ones."""
        ready = sorted(jobs, key=lambda job: -job.priority)  # the first ones may start before the last ones are sent
        for first in range(0, len(ready), _HANDED_OVER_AT_ONCE):
            if self._dropping or self._told_to_leave:
                with self._lock:
                    self._dropped += ready[first:]
                self._woken.put("look")
                return
            some = ready[first : first + _HANDED_OVER_AT_ONCE]
            queued = [item for job in some if (item := self._queued(job))]
            if queued:
                self._driver().send(Enqueue(tuple(queued), self._ready_next(some)))

    def _queued(self, job: Any) -> QueuedJob | None:
        """The job as it waits in the driver; None where it cannot be run, which Snakemake has been told then."""
        self._executor.run_job_pre(job)
        try:
            for member in members(job):
                if snakemake_jobs.reads_a_queue(member):  # it came with a checkpoint
                    raise as_error(queue_text(member.rule.name))
            item = self._handover.queued(job, self._known.request(job))
        except (RequestError, WorkflowError, OSError) as error:
            self._refuse(SubmittedJobInfo(job), str(error))
            return None
        with self._lock:
            self._jobs[item.key] = SubmittedJobInfo(job, external_jobid=item.key)
            self._keys[job] = item.key
        return item

    def _ready_next(self, jobs: list[Any]) -> tuple[Later, ...]:
        if not (self._interior.looks_ahead and any(pool.elastic for pool in self._options.pools)):
            return ()
        return ready_next(jobs, Graph(self._dag), self._keys, self._known.requests)

    def job_accepted(self, job: Any) -> None:
        """Snakemake has found the outputs of a job that succeeded; so nobody needs its log."""
        self._unchecked.accepted(job)

    def job_failed(self, job: Any) -> None:
        """Snakemake counts the job as failed; after the last attempt, and without --keep-going, it starts no more."""
        if (outcome := self._unchecked.refused(job)) is not None:
            self._voice.error(not_accepted_text(_label(job), outcome))
        if self._interior.mends_retries and job.attempt <= snakemake_jobs.restarts(job):
            snakemake_dag.let_run_again(self._dag, job)
        if self._handover.is_last(job):
            self._drop_waiting()

    # The driver

    def _driver(self) -> DriverLink:
        if self._link is None:
            with as_errors():
                state.make(self._state_dir)
                # Without Snakemake's lock another run may be here, of which this one knows nothing.
                if snakemake_settings.locks(self._workflow):
                    self._clear_up_after_dead_runs()
                kept, notes = recognise.choose(self._options, self._known.options, os.environ)
            for note in notes:
                self._voice.info(note)
            begin = Begin(
                setup=self._handover.setup(dict(os.environ)),
                options=self._known.options,
                state_dir=os.fspath(self._state_dir),
                event_log=f"{self._state_dir}{state.EVENTS}",
                jobs=self._known.jobs,
                kept=kept,
            )
            self._kept = "" if kept is None else kept.name
            launched = self._ahead.take() or launch(self._state_dir)
            self._link = DriverLink(begin, self._received, self._driver_lost, self._reading_failed, launched)
            self._voice.kept_by(self._link.send)
            self._watcher = threading.Thread(target=self._watch, name="dask-watcher", daemon=True)
            self._watcher.start()
            # Only the main thread may set a handler; elsewhere (an API caller's thread) the table is not to be had.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGUSR1, lambda *_: self._woken.put("show"))
                # Snakemake's own handler waits for a lock that the interrupted thread may hold: another one calls it.
                handler = signal.getsignal(signal.SIGTERM)
                if getattr(handler, "__self__", None) is self._workflow.scheduler:
                    self._leave = handler
                    signal.signal(signal.SIGTERM, self._terminated)
        return self._link

    def _terminated(self, *_: object) -> None:
        self._told_to_leave = True
        self._woken.put("leave")

    def _clear_up_after_dead_runs(self) -> None:
        """Cancel allocations that a run in this directory recorded before its host died, and remove its keys."""
        root = self._state_dir.parent
        try:
            for sentence in cancel_recorded(root):
                self._voice.warning(sentence)
            for directory, fate, _ in state.former_runs(root):
                if fate == "dead":
                    state.clear(directory, keep_logs=True)
        except OSError as error:
            self._voice.warning(f"What earlier runs left in {root} was left alone: {error.strerror or error}.")

    def _received(self, message: object) -> None:
        match message:
            case Together(messages=messages):
                self._report(messages)
            case Started() | Finished():
                self._report((message,))
            case Dropped(keys=keys):
                with self._lock:
                    self._dropped += [self._jobs.pop(key).job for key in keys if key in self._jobs]
                self._woken.put("look")
            case Say(level=level, text=text):
                self._voice.show(level, text)
            case Fatal(text=text):
                self._workflow.scheduler.executor_error_callback(as_error(text))
            case _:
                self._voice.show("debug", f"unknown message of the driver: {message!r}")

    def _reading_failed(self, error: BaseException) -> None:
        """On the reader's thread. Whoever the message was about would be waited for for ever, so the run ends."""
        text = f"A message of the Dask cluster's driver process could not be handled: {error!r}"
        self._voice.show("debug", "".join(traceback.format_exception(error)))
        self._fail(text)

    def _report(self, messages: Collection[Started | Finished]) -> None:
        """Successes in one go at the end: else Snakemake's scheduler, woken by the first, would look at each alone."""
        succeeded: list[SubmittedJobInfo] = []
        over = {it.key for it in messages if isinstance(it, Finished) and it.outcome.status == "succeeded"}
        for message in messages:
            if isinstance(message, Started):
                self._report_started(message.key, over=message.key in over)
            elif (info := self._report_finished(message)) is not None:
                succeeded.append(info)
        for info in succeeded:
            self._executor.report_job_success(info)
        if self._interior.wakes_once:
            snakemake_scheduler.wake_once(self._workflow.scheduler)
        self._woken.put("look")

    def _report_started(self, key: str, *, over: bool) -> None:
        with self._lock:
            info = self._jobs.get(key)
            self._started.add(key)
        if info is not None:
            report_submission(self._executor, info, over=over)

    def _report_finished(self, message: Finished) -> SubmittedJobInfo | None:
        """Returns a job that has succeeded, which is still to be reported."""
        with self._lock:
            info = self._jobs.pop(message.key, None)
            if info is not None:
                self._keys.pop(info.job, None)
            started = message.key in self._started
            self._started.discard(message.key)
        return None if info is None else self._report_ended(info, message, started=started)

    def _report_ended(self, info: SubmittedJobInfo, message: Finished, *, started: bool) -> SubmittedJobInfo | None:
        outcome = message.outcome
        kind = verdict(message, started=started, failed=self._failed, leaving=self._ended)
        if kind in ("refused", "failed"):
            text = clean_block(explain(_label(info.job), outcome, message.runs, message.message))
        try:
            self._handover.ended(message.key, _UPDATED[kind])
        except OSError as error:
            if _UPDATED[kind] != "accepted":  # else a copy is left
                name = _label(info.job)
                self._voice.warning(f"What {name} was to update could not be restored: {error}.")
        if kind == "dropped":
            with self._lock:
                self._dropped.append(info.job)
            return None
        if kind == "refused":
            self._refuse(info, text)
            return None
        if not started:
            self._executor.report_job_submission(info)
        if kind == "succeeded":
            job = info.job
            parts = not job.is_group() and bool(job.resources.get("dask_workers"))
            self._unchecked.add(job, outcome, message.runs, parts=parts)
            return info
        if kind == "failed":
            self._note_error(info, text)
            logs = [outcome.log_path] if outcome.log_path and os.path.exists(outcome.log_path) else []
            self._executor.report_job_error(info, msg=text, aux_logs=logs)
        return None

    def _refuse(self, info: SubmittedJobInfo, text: str) -> None:
        """Tell of a job that failed before it was started: its old outputs stay, and are not marked as incomplete."""
        text = clean_block(text)
        self._note_error(info, text)
        self._executor.print_job_error(info, text)
        if self._interior.fails_unstarted:
            snakemake_scheduler.fail_unstarted(self._workflow.scheduler, info.job)
        else:
            # Reported as an error it would lose its old outputs.
            self._workflow.scheduler.executor_error_callback(as_error(text))

    def _note_error(self, info: SubmittedJobInfo, text: str) -> None:
        if info.job.is_group():
            self._voice.show("error", text)  # a group's own error message never prints the text
        if self._handover.is_last(info.job):
            self._failed = True

    # Stopping

    def _drop_waiting(self) -> None:
        if not self._dropping and self._link is not None:
            self._dropping = True
            self._link.send(DropWaiting())

    def _watch(self) -> None:
        """Until the end: notice that Snakemake starts no more jobs, and tell it when only dropped ones are left."""
        scheduler = self._workflow.scheduler
        while not self._ended:
            wanted = "look"
            with contextlib.suppress(queue.Empty):
                wanted = self._woken.get(timeout=_LOOK_EVERY_S)
            if wanted == "show" and self._link is not None:
                self._link.send(ShowStatus())
            elif wanted == "leave":
                self._drop_waiting()  # at once: the scheduler's lock may be held for seconds
                self._leave(signal.SIGTERM, None)
            if starts_no_more(
                failed=snakemake_scheduler.has_failed(scheduler),
                keeps_going=snakemake_settings.keeps_going(self._workflow),
                told_to_stop=snakemake_scheduler.told_to_stop(scheduler),
            ):
                self._drop_waiting()
            with self._lock:
                dropped, handed_over = list(self._dropped), len(self._jobs)
            if over(dropped, handed_over, lambda: snakemake_scheduler.running(scheduler)):
                scheduler.executor_error_callback(as_error(not_started_text(len(dropped))))
                return

    def _driver_lost(self, how: str) -> None:
        """On the reader's thread; `end` waits for it. What the driver did not give back is given back here."""
        assert self._link is not None
        text = clean_up_after(how, self._state_dir, self._link.log_tail(), leaving=self._ended, kept=self._kept)
        self._fail(text)

    def _fail(self, text: str) -> None:
        """The run ends with this error."""
        if self._ended:
            self._voice.error(text)  # Snakemake's scheduler is over, and hears of no error any more
        else:
            self._workflow.scheduler.executor_error_callback(as_error(text))

    def end(self, *, kill: bool) -> None:
        """Give everything back; with ``kill`` running jobs are ended first. May be repeated."""
        self._ended = True
        self._woken.put("look")
        if self._link is not None:
            try:
                self._stop(self._link, kill=kill)
            except KeyboardInterrupt:
                if not kill:
                    raise  # the first Ctrl-C, which Snakemake answers by `cancel`
                self._voice.warning(
                    "Snakemake exits without waiting; the driver process goes on ending jobs and giving workers back."
                )
        snakemake_scheduler.forget_reevaluations(self._workflow.scheduler)
        self._ahead.close(taken=self._link is not None)
        for output, before in self._handover.left_updated():
            self._voice.warning(
                f"{output} may be half updated, since its job was not seen to end. Its former content is in {before} "
                "until a run updates it again."
            )
        self._handover.close()

    def _stop(self, link: DriverLink, *, kill: bool) -> None:
        ended = link.stop(kill=kill, timeout_s=_STOP_TIMEOUT_S)
        if link.last is not None:
            hints: dict[str, str] = {}
            with contextlib.suppress(OSError):  # others have laid hands on the record: the names must do
                hints = cancel_hints(self._state_dir)
            for worker in link.last.left:
                hint = f", in {hints[worker]}" if worker in hints else ""
                self._voice.error(f"Worker {worker} may still be running{hint} (see {self._state_dir}).")
        if not ended:
            done = "did not end" if link.last is None else "gave everything back, but did not end"
            self._voice.error(f"The driver process {done} within {_STOP_TIMEOUT_S:.0f} s.")
