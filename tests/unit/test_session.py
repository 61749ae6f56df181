"""What a run is called."""

from snakemake_executor_plugin_dask.observe.dashboard import task_key
from snakemake_executor_plugin_dask.session import new_run_id


def test_run_ids_stand_in_the_keys_of_their_jobs() -> None:
    """By its id a run's processes are found, so that each key holds it unchanged."""
    ids = {new_run_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(f"-{run_id}-" in task_key("align", run_id, 1, 1, 1) for run_id in ids)
