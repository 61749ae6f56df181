"""The jobs of a run that are known before the first one: requests checked, pools completed, warnings said."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from snakemake_executor_plugin_dask.decide import hints, localpool, routing
from snakemake_executor_plugin_dask.frontend.failures import queue_text
from snakemake_executor_plugin_dask.frontend.handover import Handover, cores_at_once
from snakemake_executor_plugin_dask.frontend.preflight import Question, ask
from snakemake_executor_plugin_dask.frontend.voice import Voice, as_error, as_errors
from snakemake_executor_plugin_dask.interior import checks, snakemake_dag, snakemake_jobs, snakemake_settings
from snakemake_executor_plugin_dask.kept import recognise
from snakemake_executor_plugin_dask.model.errors import RequestError
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Shape
from snakemake_executor_plugin_dask.model.printed import clean_block
from snakemake_executor_plugin_dask.model.requests import (
    Request,
    slurm_names,
    unknown_slurm_names,
    unknown_slurm_warning,
)
from snakemake_executor_plugin_dask.node.allocation import end_time


class KnownJobs:
    """What is known of them, and of the pools that they are to run in."""

    def __init__(
        self, workflow: Any, dag: Any, options: Options, interior: checks.Interior, handover: Handover, voice: Voice
    ) -> None:
        """``options``: as the user gave them."""
        self._workflow, self._dag = workflow, dag
        self._interior, self._handover, self._voice = interior, handover, voice
        self._asked = self.options = options  # completed by what this machine, a batch system or a cluster has
        self.requests: dict[Any, Request] = {}  # by job, as far as they could be known
        self.jobs = 0  # how many there are, those included whose requests are not known yet
        self._shapes: dict[str, Shape] = {pool.name: routing.shape_of(pool, None) for pool in options.pools}
        self._equal: dict[Request, Request] = {}  # equal ones are one: thousands of jobs may ask for the same
        self._warned: set[str] = set()  # kinds of warning

    def check(self, *, slurm_ignored: bool) -> None:
        """Stop the run where a request can never be held; say once what is not declared."""
        named: list[tuple[str, Request]] = []
        slurm: list[tuple[str, tuple[str, ...]]] = []
        unknown: dict[Any, str] = {}  # jobs whose requests are not known yet, with their rules
        problems: dict[str, None] = {}
        groups: dict[Any, Request] = {}
        for single in self._dag.needrun_jobs():
            job = snakemake_dag.group_of(self._dag, single) or single
            if job.is_local:
                if self._interior.looks_up_pipes:
                    snakemake_dag.look_up_pipes(self._dag, single)
                continue
            if snakemake_jobs.reads_a_queue(single):
                if complaint := self._keep_here(single, alone=job is single):
                    problems[complaint] = None
                continue
            if job in groups:
                self.requests[single] = groups[job]
                continue
            try:
                resources = dict(job.resources.items())
            except Exception:  # noqa: BLE001 - of functions of inputs that are not there yet, which are asked again
                unknown[job] = job.name
                continue
            slurm.append((job.name, slurm_names(resources)))
            try:
                request = self.request(job)
            except RequestError as error:
                problems[f"Job of {job.name}: {error}"] = None
                continue
            named.append((job.name, request))
            self.requests[single] = request
            if job.is_group():
                groups[job] = request
        if self.options.local_by_default and (complaint := hints.slurm_on_local(slurm)):
            problems[complaint] = None
        if problems and not self.options.plan:
            raise as_error("\n".join(problems))
        if slurm_ignored and (warning := hints.slurm_ignored(slurm)):
            self._voice.warning(warning)
        self.jobs = len(named) + len(unknown)
        self._prepare(named, unknown.values(), problems)
        if complaint := routing.check_all(named, self.options.pools, self._shapes):
            raise as_error(complaint)
        self._hint(named)

    def request(self, job: Any) -> Request:
        """The job's request; on the single local pool a workflow written for a cluster runs as it does locally."""
        found = self._handover.request(job)
        request = self._equal.setdefault(found, found)
        if self.options.make_slurm_pools:
            for name in set(unknown_slurm_names(dict(job.resources.items()))) - self._warned:
                self._warned.add(name)
                self._voice.warning(unknown_slurm_warning(name, job.name))
        pool = self.options.pools[0]
        if len(self.options.pools) != 1 or not pool.kind.adapts:
            return request
        shape = self._shapes[pool.name]
        adapted, kinds = localpool.adapt_to_local(request, shape, cores_at_once(job))
        for kind in kinds:
            if kind not in self._warned:
                self._warned.add(kind)
                self._voice.warning(localpool.local_warning(kind, job.name, request, shape))
        return self._equal.setdefault(adapted, adapted)

    def _hint(self, named: list[tuple[str, Request]]) -> None:
        """Say what keeps workers idle or jobs without limits."""
        pools, workflow = self.options.pools, self._workflow
        scheduler, ready = snakemake_settings.scheduler(workflow), snakemake_dag.number_ready(self._dag)
        said = [
            hints.few_jobs(snakemake_settings.jobs(workflow), named, pools, self._shapes),
            hints.capped_threads(snakemake_settings.cores(workflow), named, pools, self._shapes),
            hints.slow_choice(scheduler, ready),
        ]
        if not self._single_local:
            said += hints.missing(named, ending=self._workers_end())
        if len(pools) > 1:
            said += [f"No job of this run can use pool {name}." for name in hints.unused(pools, named, self._shapes)]
        for sentence in filter(None, said):
            self._voice.warning(sentence)

    def _keep_here(self, job: Any, *, alone: bool) -> str | None:
        """On this machine alone a job with input from a queue runs as a local rule does; elsewhere the complaint."""
        name = job.rule.name
        if not (self._single_local and alone and snakemake_settings.run_here(self._workflow, name)):
            return queue_text(name)
        self._voice.warning(
            f"Rule {name} takes its input from a queue (from_queue), which only Snakemake's own process can read: it "
            "runs there, as a local rule does."
        )
        return None

    def _prepare(self, named: list[tuple[str, Request]], unknown: Iterable[str], problems: Iterable[str]) -> None:
        """Complete and check pools that are not simply this machine; show the plan, where it is asked for."""
        plan = self.options.plan
        if plan or not all(pool.complete for pool in self.options.pools):
            if not plan and (there := self._of_a_cluster_that_is_up(named)) is not None:
                self.options = there
                return
            with as_errors():
                answer = ask(Question(self.options, tuple(named), plan, tuple(unknown), tuple(problems)))
            for note in answer.notes:
                self._voice.warning(note)
            self.options = answer.options
            if plan:
                sys.stdout.write(clean_block(answer.plan) + "\n")
                raise SystemExit(0 if answer.possible else 1)
        self._shapes = {pool.name: routing.shape_of(pool, None) for pool in self.options.pools}

    def _of_a_cluster_that_is_up(self, named: list[tuple[str, Request]]) -> Options | None:
        """What was completed for an earlier run, where all known jobs fit: nothing of Dask is waited for."""
        options = recognise.completed(self._asked, os.environ)
        if options is None or not options.pools:
            return None
        shapes = {pool.name: routing.shape_of(pool, None) for pool in options.pools}
        if routing.check_all(named, options.pools, shapes):
            return None
        self._shapes = shapes
        return options

    @property
    def _single_local(self) -> bool:
        return len(self.options.pools) == 1 and self.options.pools[0].kind.here

    def _workers_end(self) -> bool:
        """Whether workers may have a walltime: their own, or that of the allocation in which Snakemake runs."""
        known = any(pool.walltime_s is not None or pool.kind.found for pool in self.options.pools)
        return known or end_time(os.environ) is not None
