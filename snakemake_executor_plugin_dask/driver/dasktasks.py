"""Attempts as Dask's tasks: how a client submits one, and has it ended."""

from collections.abc import Mapping
from typing import Any

from snakemake_executor_plugin_dask.driver.jobs import Attempt
from snakemake_executor_plugin_dask.model.job_messages import Start
from snakemake_executor_plugin_dask.model.jobs import JobSpec, members_text, wildcard_text
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.observe.wording import clean
from snakemake_executor_plugin_dask.worker import client as task


def submit(client: Any, run_id: str, attempt: Attempt, spec: JobSpec) -> Any:
    """The attempt's future: on its worker or not at all, and never a second time."""
    return client.submit(
        *call(run_id, spec),
        key=task_key(attempt, spec),
        workers=[address(attempt)],
        allow_other_workers=False,
        pure=False,
        retries=0,
    )


def call(run_id: str, spec: JobSpec) -> tuple[Any, ...]:
    """The function of an attempt's task, and its arguments: the worker hands the message on as it is."""
    certify = spec.cluster is not None and spec.spread is None
    return task.run_job, run_id, spec.key, frame(Start(spec)), certify


async def kill(client: Any, run_id: str, attempt: Attempt, reason: str) -> None:
    """Ask the attempt's worker to end it."""
    await client.run(task.kill_job, run_id, attempt.key, reason, workers=[address(attempt)], on_error="ignore")


async def tell_cluster(client: Any, run_id: str, attempt: Attempt, message: Mapping[str, Any]) -> None:
    """Tell the attempt's own Dask cluster."""
    where = [address(attempt)]
    await client.run(task.tell_cluster, run_id, attempt.key, message, workers=where, on_error="ignore")


def task_key(attempt: Attempt, spec: JobSpec) -> str:
    """What Dask's pages show of a task: its attempt, and behind that which job it is."""
    which = members_text(spec.members) if spec.members else wildcard_text(spec.wildcards)
    return clean(f"{attempt.key} {which}", 300).rstrip()


def address(attempt: Attempt) -> str:
    """Dask's name of the attempt's worker."""
    assert attempt.member is not None
    return attempt.member.address
