"""A pytest plugin that runs Snakemake's own tests through the dask executor; `./run snakemake-tests` starts it.

Where a test calls Snakemake's API for the local executor or for `cluster-generic`, the jobs go to this one, with its
defaults. What starts a Snakemake by a command line of its own stays as it is. `not_passing.txt` beside this file names
the tests that are not run, each with its reason.
"""

from pathlib import Path
from typing import Any

import pytest
from snakemake.api import DAGApi, SnakemakeApi

LIST = Path(__file__).with_name("not_passing.txt")


def not_passing() -> dict[str, str]:
    """Names of tests and why they are not run, from lines as `test_name: reason`; other lines are headings."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line.startswith("test"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = not_passing()
    for item in items:
        reason = reasons.get(item.name) or reasons.get(item.name.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _through_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    make_workflow, execute = SnakemakeApi.workflow, DAGApi.execute_workflow

    def workflow(self: Any, resource_settings: Any, *arguments: Any, **given: Any) -> Any:
        if resource_settings.nodes is None:
            resource_settings.nodes = 100
        return make_workflow(self, resource_settings, *arguments, **given)

    def execute_workflow(self: Any, executor: str = "local", **given: Any) -> Any:
        if executor in {"local", "cluster-generic"}:
            executor, given["executor_settings"] = "dask", None
        return execute(self, executor=executor, **given)

    monkeypatch.setattr(SnakemakeApi, "workflow", workflow)
    monkeypatch.setattr(DAGApi, "execute_workflow", execute_workflow)
