"""What is private to Snakemake is used in one package alone, is declared there, and is there in the tested versions."""

import ast
import dataclasses
import io
import logging
import sys
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Scheduler, Worker
from imported import imported
from snakemake_interface_executor_plugins.dag import DAGExecutorInterface
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.jobs import (
    GroupJobExecutorInterface,
    JobExecutorInterface,
    SingleJobExecutorInterface,
)
from snakemake_interface_executor_plugins.settings import (
    DeploymentSettingsExecutorInterface,
    StorageSettingsExecutorInterface,
)
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface
from snakemake_interface_scheduler_plugins.interfaces.dag import DAGSchedulerInterface
from snakemake_interface_scheduler_plugins.interfaces.jobs import (
    GroupJobSchedulerInterface,
    JobSchedulerInterface,
    SingleJobSchedulerInterface,
)
from system.test_interior_worker import NAMES, NO_DAG

import snakemake_executor_plugin_dask
from snakemake_executor_plugin_dask.interior import checks, cuda, declared, jobqueue
from snakemake_executor_plugin_dask.interior.declared import Gone, Private
from snakemake_executor_plugin_dask.model.jobs import JobSpec, RunSetup
from snakemake_executor_plugin_dask.model.warmcall import Call

PACKAGE = Path(snakemake_executor_plugin_dask.__file__).parent

JOB = (
    *(JobExecutorInterface, SingleJobExecutorInterface, GroupJobExecutorInterface),
    *(JobSchedulerInterface, SingleJobSchedulerInterface, GroupJobSchedulerInterface),
)
#: What Snakemake's interface packages declare of the objects that go by these names in modules which meet Snakemake's.
DECLARED: dict[str, tuple[type, ...]] = {
    "executor": (RealExecutor,),
    "workflow": (WorkflowExecutorInterface,),
    "dag": (DAGExecutorInterface, DAGSchedulerInterface),
    "scheduler": (typing.get_type_hints(WorkflowExecutorInterface.scheduler.fget)["return"],),
    **dict.fromkeys(("job", "single", "member", "later", "other", "each"), JOB),
    "rule": (typing.get_type_hints(SingleJobExecutorInterface.rule.fget)["return"],),
    "factory": (typing.get_type_hints(WorkflowExecutorInterface.spawned_job_args_factory.fget)["return"],),
}
DASK = ("dask", "distributed", "dask_jobqueue", "dask_cuda")
#: What the documentation of Dask's packages shows.
DOCUMENTED = {
    "dask",
    "dask.config",
    *("dask.config.get", "dask.config.set", "dask.config.merge"),
    *("distributed.Client", "distributed.Future", "distributed.wait"),
    *("distributed.SchedulerPlugin", "distributed.Scheduler"),
    *("distributed.Worker", "dask_cuda.CUDAWorker"),  # the latter where `SSHCluster` is described
    "distributed.diagnostics.plugin.SchedulerPlugin",
    "distributed.security.Security",
    "distributed.core.Status",  # of a worker, as a scheduler plugin meets it
}
#: Names of objects, their documented class, and what its documentation names beside its methods.
DASK_OBJECTS = (
    ({"client", "cluster.client"}, Client, {"status"}),
    ({"scheduler", "cluster.scheduler"}, Scheduler, {"workers", "link"}),  # the link is of the plugin's own class
    ({"dask_worker"}, Worker, {"local_directory", "plugins", "name", "address"}),
)
MEET_DASK = ("driver/", "backends/", "observe/", "worker/attach.py")
#: What the base class of executors sets itself.
OF_EXECUTORS = {"workflow", "dag", "logger", "executor_settings", "snakefile"}
#: Modules in which these names are Snakemake's objects; elsewhere a job is the plugin's own.
MEET_SNAKEMAKE = ("executor", "session", "handover", "arguments")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "interior":
            yield path, ast.parse(path.read_text())


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Modules of Snakemake that are imported, also by name, but for its documented API."""
    for node in ast.walk(tree):
        names = imported(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in {"import_module", "find_spec", "__import__"}:
                names = [str(one.value) for one in node.args if isinstance(one, ast.Constant)]
        for name in names:
            if name.split(".")[0] == "snakemake" and not f"{name}.".startswith("snakemake.api."):
                yield f"line {node.lineno}: {name}"


def interface_of(node: ast.expr) -> tuple[type, ...]:
    """The interface classes of what an expression stands for; none: it is not Snakemake's."""
    if isinstance(node, ast.Name):
        return DECLARED.get(node.id, ())
    if not isinstance(node, ast.Attribute):
        return ()
    owners = interface_of(node.value)
    for owner in owners:
        found = getattr(owner, node.attr, None)
        if isinstance(found, property):
            returned = typing.get_type_hints(found.fget).get("return")
            if isinstance(returned, type) and returned.__module__.startswith("snakemake_interface"):
                return (returned,)
    return DECLARED.get(node.attr.removeprefix("_"), ()) if not owners or node.attr in OF_EXECUTORS else ()


def undeclared(tree: ast.Module) -> Iterator[str]:
    """Attributes of Snakemake's objects that no interface declares."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owners = interface_of(node.value)
        if owners and not any(hasattr(owner, node.attr) for owner in owners):
            if RealExecutor in owners and node.attr in OF_EXECUTORS:
                continue
            yield f"line {node.lineno}: {ast.unparse(node)}"


def undocumented_imports(tree: ast.Module) -> Iterator[str]:
    """Names of Dask's packages that no documentation shows."""
    for node in ast.walk(tree):
        for name in imported(node):
            if name.split(".")[0] in DASK and name not in DOCUMENTED:
                yield f"line {node.lineno}: {name}"


def undocumented_attributes(tree: ast.Module) -> Iterator[str]:
    """Attributes of Dask's objects, and of its configuration, that no documentation shows."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        base = ast.unparse(node.value).removeprefix("self.").removeprefix("_")
        if base == "dask.config" and f"{base}.{node.attr}" not in DOCUMENTED:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        for names, owner, attributes in DASK_OBJECTS:
            known = {name for name in dir(owner) if not name.startswith("_")} | attributes
            if base in names and node.attr not in known:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_nothing_else_imports_what_dask_does_not_document() -> None:
    """Of dask, distributed, dask_jobqueue and dask_cuda, whose names mostly have no underscore."""
    found = {path.name: list(undocumented_imports(tree)) for path, tree in sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_nothing_else_touches_what_dask_does_not_document() -> None:
    """Clients, workers and schedulers go by these names in the modules that have any."""
    found = {
        # There `client` is a module of the plugin's own.
        path.name: [
            use
            for use in undocumented_attributes(tree)
            if path.name not in {"attach.py", "fleet.py"} or ": client." not in use
        ]
        for path, tree in sources()
        if str(path.relative_to(PACKAGE)).startswith(MEET_DASK)
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_nothing_else_reaches_into_objects() -> None:
    """The linter finds attributes with an underscore; only here may it be told to look away."""
    assert [path.name for path, _ in sources() if "SLF001" in path.read_text()] == []


def test_nothing_else_imports_snakemakes_interior() -> None:
    """But for `snakemake.api`, and the interface packages, which are for plugins."""
    found = {path.name: list(private_imports(tree)) for path, tree in sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_nothing_else_touches_undeclared_attributes() -> None:
    """Workflow, graph, jobs and scheduler arrive as arguments: an import alone would not tell of these uses."""
    found = {path.name: list(undeclared(tree)) for path, tree in sources() if path.stem in MEET_SNAKEMAKE}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.skipif(sys.version_info < (3, 14), reason="earlier ones evaluate annotations with the class")
def test_annotations_that_cannot_be_evaluated() -> None:
    """A class may annotate what is imported for type checkers alone; its other fields are found all the same."""
    names: dict[str, Any] = {}
    exec("class Settings:\n    cores: int\n    pool: OnlyForTypeCheckers\n", names)
    assert declared.defines(names["Settings"], "cores")
    assert not declared.defines(names["Settings"], "workers")


@pytest.mark.parametrize(
    "code",
    [
        "self._workflow.resource_settings.cores",
        "executor.workflow.dag",
        "self._executor.dag.depending",
        "scheduler._errors",
        "self._workflow.scheduler.running",
        "job.restart_times",
        "info.job.priority.real or info.job.restart_times",
        "self._workflow.execution_settings.keep_going",
        "member.rule.group",
    ],
)
def test_undeclared_attributes_are_seen(code: str) -> None:
    """The test above would see each of these."""
    assert list(undeclared(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "self._workflow.storage_settings.shared_fs_usage",
        "self._executor.dag.needrun_jobs()",
        "self._workflow.scheduler.executor_error_callback(error)",
        "job.rule.name, job.priority, job.jobs",
        "self._handover.queued(job)",
    ],
)
def test_declared_attributes_are_free(code: str) -> None:
    """What the interfaces declare may be used anywhere."""
    assert not list(undeclared(ast.parse(code)))


@pytest.mark.parametrize("code", ["from snakemake import cli", "import snakemake.dag", "find_spec('snakemake.cli')"])
def test_private_imports_are_seen(code: str) -> None:
    """However a module is named."""
    assert list(private_imports(ast.parse(code)))
    assert not list(private_imports(ast.parse("from snakemake.api import SnakemakeApi")))


# What the warm process uses, which looks for nothing by name

#: Not Snakemake's: Python's own.
_PYTHONS = {
    "__file__",
    "__name__",
    "__traceback__",
    "_default_executor",
    "_finalizer",
    "_loop",
    "default",
    "handlers",
    "pid",
}
#: Attributes of this package's own classes, in other modules.
_OWN = {"begin", "digests", "keep", "parser", "setup"}
#: Modules, what Snakemake's documentation or an interface package names, and what Snakemake's registry looks for.
_NOT_PRIVATE = {
    *("api", "cli", "local", "shell", "logger", "executable", "prefix", "suffix", "JOB_FINISHED"),
    *("Executor", "all", "dag", "executor_settings"),
}


def used_in_warm_processes() -> set[str]:
    """Names of Snakemake's that the modules for warm processes use."""
    plain = (str, list, dict, logging.Logger, logging.StreamHandler, io.StringIO, ThreadPoolExecutor, datetime)
    declared_settings = (DeploymentSettingsExecutorInterface, StorageSettingsExecutorInterface)
    classes = (*plain, *declared_settings, *(kind for kinds in DECLARED.values() for kind in kinds))
    known = {name for kind in classes for name in dir(kind)} | set(Call._fields)
    known |= {field.name for kind in (JobSpec, RunSetup) for field in dataclasses.fields(kind)}
    found = set()
    for module in ("snakemake_kept", "snakemake_command_line"):
        nodes = list(ast.walk(ast.parse((PACKAGE / "interior" / f"{module}.py").read_text())))
        known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        attributes = {node: ast.unparse(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        known |= {node.attr for node, of in attributes.items() if of in {"self", "quick_imports"}}
        found |= {node.attr for node, of in attributes.items() if of.partition(".")[0] not in sys.stdlib_module_names}
        for node in nodes:
            found |= {name.rpartition(".")[2] for name in imported(node) if name.startswith("snakemake.")}
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"_put", "Instead"}:
                found |= {str(name.value) for name in node.args[1:2] if isinstance(name, ast.Constant)}
    return found - known - _PYTHONS - _OWN - _NOT_PRIVATE


def test_each_name_that_a_warm_process_uses_is_tried_with_another() -> None:
    """`./run tests interior` runs jobs with a Snakemake in which it is renamed."""
    tried = {name for names in NAMES.values() for name in names.split()} | set(NO_DAG)
    assert used_in_warm_processes() - tried == set()


# The declarations


class Thing:
    """Stands in for a class of another package."""

    annotated: int

    def __init__(self) -> None:
        self.made = 1

    def method(self, first: int, *, second: int) -> None:
        """Takes arguments by name."""


def of_thing(name: str, **more: Any) -> Private:
    return Private(f"{__name__}:Thing", name, "things go wrong", **more)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(declared.READ_IN, __name__.partition(".")[0], "1.0")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Thing=Thing))


def test_all_is_there_in_the_installed_versions() -> None:
    """And a run neither warns of anything nor is refused."""
    jobqueue.load()
    found = [dataclasses.replace(checks.of_snakemake(), untried=""), checks.of_dask(), checks.of_attached_dask()]
    assert found == [checks.Interior()] * 3
    assert declared.missing(jobqueue.NAMES) == []


@pytest.mark.parametrize("name", ["annotated", "made", "method"])
def test_names_are_found_wherever_a_class_defines_them(name: str) -> None:
    """As a field, set by the constructor, or as a method."""
    assert of_thing(name).there()


@pytest.mark.parametrize(
    "gone",
    [
        of_thing("other"),
        of_thing("method", arguments=("third",)),
        Private(f"{__name__}:Nothing", "made", ""),
        Private("nowhere", "made", ""),
    ],
)
def test_what_is_gone_is_noticed(gone: Private) -> None:
    """The name, an argument, the class, or the whole module."""
    assert declared.missing([gone, of_thing("made")]) == [gone]


def test_a_use_of_what_is_gone_says_what_is_lost() -> None:
    """Should the check have overlooked it: never a default in its place."""
    assert of_thing("made").of(Thing()) == 1
    with pytest.raises(Gone, match=r"Thing\.other \(without it, things go wrong\)"):
        of_thing("other").of(Thing())


@pytest.mark.parametrize(
    ("tried", "said"),
    [("1.0.9", "is newer than all that the plugin was tried with (up to 1.0)"), ("999.0", ""), ("", "")],
)
def test_a_minor_version_that_was_never_tried_is_named(tried: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer patch of one that was tried is not."""
    found = declared.version("snakemake")
    monkeypatch.setitem(declared.READ_IN, "snakemake", tried or found.rpartition(".")[0] + ".0")
    sentence = declared.untried("snakemake")
    assert bool(sentence) is bool(said)
    assert said in sentence
    assert not said or sentence.startswith(f"Snakemake {found} ")


def test_each_name_is_declared_once() -> None:
    """So that the check at the start and the use cannot differ."""
    found = (*checks.NAMES, *checks.dask_names(), *checks.attached_names(), *jobqueue.NAMES, *cuda.NAMES)
    assert len({(name.owner, name.name) for name in found}) == len(set(found))
