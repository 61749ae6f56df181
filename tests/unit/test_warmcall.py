"""Which jobs can be described as a call, and what the description holds."""

import pickle
from types import SimpleNamespace
from typing import Any, Self

import pytest
from snakemake.common.tbdstring import TBDString
from snakemake.resources import Resource

from snakemake_executor_plugin_dask.interior import snakemake_calls
from snakemake_executor_plugin_dask.model.warmcall import Call


class File(str):
    """A file of a rule: text with flags."""

    __slots__ = ("flags", "is_storage")

    def __new__(cls, name: str, *flags: str, storage: bool = False) -> Self:
        file = super().__new__(cls, name)
        file.flags = dict.fromkeys(flags, True)
        file.is_storage = storage
        return file


class Files(list[Any]):
    """Files of a rule, of which some have names."""

    names: tuple[tuple[str, tuple[int, int | None]], ...] = ()

    def _get_names(self) -> Any:
        return iter(self.names)


def describe(job: Any) -> bytes | None:
    return snakemake_calls.describe(job, job.workflow)


def make_job(**changes: Any) -> Any:
    """A plain shell job; names with two underscores reach into it (``rule__norun``)."""
    workflow = SimpleNamespace(
        workflow_settings=SimpleNamespace(cache=None),
        deployment_settings=SimpleNamespace(deployment_method=set()),
        rules=[],
        resource_settings=SimpleNamespace(resources={}),
    )
    rule = SimpleNamespace(
        name="align",
        norun=False,
        is_notebook=False,
        is_cwl=False,
        is_template_engine=False,
        is_handover=False,
        is_wrapper=False,
        is_checkpoint=False,
        cache=SimpleNamespace(output=False),
        conda_env=None,
        container_img=None,
        env_modules=None,
        resources={},
    )
    workflow.rules.append(rule)
    job = SimpleNamespace(
        rule=rule,
        dag=SimpleNamespace(workflow=workflow),
        workflow=workflow,
        is_group=lambda: False,
        has_queue_input=lambda: False,
        pipe_or_service_output=set(),
        pipe_group=None,
        is_run=False,
        input=Files([File("a"), File("b", "ancient"), File("c", "directory")]),
        output=Files([File("out", "temp")]),
        log=Files([]),
        benchmark=None,
        resources={},
        get_target_spec=lambda: [SimpleNamespace(wildcards_dict={"sample": "x,y"})],
        jobid=17,
    )
    job.input.names = (("first", (0, None)), ("others", (1, 3)))
    for path, value in changes.items():
        *owners, name = path.split("__")
        owner: Any = job
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return job


def test_a_plain_job_is_described() -> None:
    """The description holds the rule, wildcards and files, and the input's names."""
    data = describe(make_job())
    assert data is not None
    assert Call(*pickle.loads(data)) == Call(
        rule="align",
        wildcards={"sample": "x,y"},
        input=["a", "b", "c"],
        input_names=[("first", (0, None)), ("others", (1, 3))],
        directories=[2],
        output=["out"],
        jobid=17,
        resources={},
    )


def test_values_of_expressions_travel_and_no_others() -> None:
    """What the author's functions give, what differs from node to node, and what is limited is left to the worker."""
    of_rule = {
        "mem_mb": Resource.from_cli_expression("mem_mb", "max(2*input.size_mb, 1000)"),
        "disk_mb": Resource.from_cli_expression("disk_mb", "attempt * 7"),
        "unknown": Resource.from_cli_expression("unknown", "input.size_mb"),
        "licences": Resource.from_cli_expression("licences", "attempt"),
        "tmpdir": Resource.from_cli_expression("tmpdir", "system_tmpdir"),
        "runtime": Resource("runtime", lambda _: 5),
        "partition": Resource("partition", "long"),
    }
    values = {"mem_mb": 1000, "disk_mb": 7, "unknown": TBDString(), "licences": 1, "tmpdir": "/tmp", "runtime": 5}
    job = make_job(rule__resources=of_rule, resources=values, workflow__resource_settings__resources={"licences": 3})
    data = describe(job)
    assert data is not None
    assert Call(*pickle.loads(data)).resources == {"mem_mb": 1000, "disk_mb": 7}


def test_the_description_holds_plain_text_only() -> None:
    """Nothing of Snakemake's classes travels, so that the description is small and needs no imports to be read."""
    data = describe(make_job())
    assert data is not None
    assert b"File" not in data
    assert len(data) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"is_group": lambda: True},
        {"rule__norun": True},
        {"rule__is_notebook": True},
        {"rule__is_cwl": True},
        {"rule__is_template_engine": True},
        {"rule__is_handover": True},
        {"rule__cache": SimpleNamespace(output=True), "workflow__workflow_settings__cache": ["align"]},
        {"has_queue_input": lambda: True},
        {"pipe_or_service_output": {"out"}},
        {"pipe_group": object()},
        {"input": Files([File("a", "pipe")])},
        {"input": Files([File("a", "storage_object")])},
        {"input": Files([File("a", "flag_of_a_later_version")])},
        {"output": Files([File("out", storage=True)])},
        {"log": Files([File("log", storage=True)])},
        {"benchmark": File("bench", storage=True)},
        {"workflow__deployment_settings__deployment_method": {"conda"}, "rule__conda_env": "env.yaml"},
        {"workflow__deployment_settings__deployment_method": {"apptainer"}, "rule__container_img": "image"},
        {"workflow__deployment_settings__deployment_method": {"conda"}, "rule__is_wrapper": True},
        {"is_run": True, "rule__is_checkpoint": True},
        {"get_target_spec": lambda: [SimpleNamespace(wildcards_dict={"sample": lambda: None})]},
    ],
    ids="+".join,
)
def test_a_job_that_needs_more_is_not_described(change: dict[str, Any]) -> None:
    """What needs a DAG or a scheduler of its own, or is not known, is left to the depth above."""
    assert describe(make_job(**change)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"workflow__deployment_settings__deployment_method": {"conda"}},
        {"rule__conda_env": "env.yaml"},
        {"rule__cache": SimpleNamespace(output=True)},
        {"is_run": True},
        {"benchmark": File("bench")},
    ],
    ids="+".join,
)
def test_what_is_not_used_does_not_matter(change: dict[str, Any]) -> None:
    """A declared environment without deployment, and deployment without a declared environment, change nothing."""
    assert describe(make_job(**change)) is not None
