"""The argument list of a job's Snakemake: nothing is lost or changed on the way, whatever values hold."""

import pickle
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.utils import TargetSpec, format_cli_arg, is_quoted, join_cli_args

from snakemake_executor_plugin_dask.frontend import arguments as module
from snakemake_executor_plugin_dask.frontend.arguments import ADDED, general_arguments, job_arguments
from snakemake_executor_plugin_dask.settings import common_settings

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\x1d\x1e\x1f"), max_size=30)


def job(**changes: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    values: dict[str, Any] = {
        "snakefile": "Snakefile",
        "target": [TargetSpec("a", {"x": "1"})],
        "rules": ["a"],
        "cores": 8,
        "max_threads": 2,
        "attempt": 1,
        "groupid": None,
        "unneeded_temp_files": [],
        "wait_for_files": [],
    }
    arguments, overrides = job_arguments(**(values | changes))
    return arguments, pickle.loads(overrides) if overrides else {}


def test_plain_job_needs_no_overrides() -> None:
    """An ordinary job is expressed by the command line alone."""
    arguments, overrides = job(wait_for_files=["in put.txt", "b"])
    assert overrides == {}
    assert arguments == (
        "--snakefile", "Snakefile", "--target-jobs", "a:x=1", "--allowed-rules", "a", "--cores", "8",
        "--max-threads", "2", "--attempt", "1", "--force-use-threads", "--wait-for-files", "in put.txt", "b",
    )  # fmt: skip


def test_group_job_has_its_id() -> None:
    """A group's Snakemake is told its group, and uses processes for its jobs."""
    arguments, _ = job(groupid="1234")
    assert arguments[arguments.index("--local-groupid") + 1] == "1234"
    assert "--force-use-threads" not in arguments


@given(st.dictionaries(st.sampled_from(["x", "y"]), text, min_size=1))
def test_wildcards_survive(wildcards: dict[str, str]) -> None:
    """Whatever a wildcard's value is, the job's Snakemake gets it: by its command line or by an override."""
    arguments, overrides = job(target=[TargetSpec("a", wildcards)])
    if "target_jobs" in overrides:
        assert [tuple(spec) for spec in overrides["target_jobs"]] == [("a", wildcards)]
    else:
        given = arguments[arguments.index("--target-jobs") + 1]
        assert parse_target_jobs_cli_args([given]) == [TargetSpec("a", wildcards)]
        assert not given.startswith("-")


@given(st.lists(text.filter(bool), min_size=1, max_size=4))
def test_files_with_leading_dashes_travel_as_overrides(files: list[str]) -> None:
    """A file name that looks like an option is never given as an argument."""
    arguments, overrides = job(wait_for_files=files)
    if any(name.startswith("-") for name in files):
        assert overrides["wait_for_files"] == files
        assert "--wait-for-files" not in arguments
    else:
        assert list(arguments[arguments.index("--wait-for-files") + 1 :]) == files


def test_what_no_command_line_holds_travels_as_overrides() -> None:
    """Thousands of input files, or members of a group."""
    files = [f"a/rather/long/path/of/a/sample/{number}.txt" for number in range(5000)]
    target = [TargetSpec("a", {"x": f"a-sample-with-a-name-{number}"}) for number in range(5000)]
    for changes in ({"wait_for_files": files}, {"target": target}, {"unneeded_temp_files": files}):
        arguments, overrides = job(**changes)
        assert sum(map(len, arguments)) < 1000
        for name, value in changes.items():
            assert overrides[{"target": "target_jobs"}.get(name, name)] == value


class Factory:
    """Formats one argument as Snakemake's own factory does."""

    def __init__(self, value: object, flag: str = "--config") -> None:
        self.value = value
        self.flag = flag

    def general_args(self, executor_common_settings: object) -> str:
        joined: str = join_cli_args(["--force", "--retries 0", "", format_cli_arg(self.flag, self.value)])
        return joined


#: Snakemake does not quote again what begins and ends with quotes.
unquoted = text.filter(lambda value: bool(value) and not is_quoted(value))


@given(st.lists(unquoted, min_size=1, max_size=4))
def test_general_values_survive(values: list[str]) -> None:
    """Values with quotes, spaces, dollars or newlines arrive as they are, each as one argument."""
    arguments = general_arguments(Factory(values), common_settings)
    assert arguments == ["--force", "--retries", "0", "--config", *values, *ADDED]


def shell_quoting(flag: str, value: Any) -> str:
    """As a later version of Snakemake may do it."""
    values = [value] if isinstance(value, str) else value
    return f"{flag} {shlex.join(values)}"


@given(st.lists(unquoted, min_size=1, max_size=4))
def test_values_that_are_quoted_for_a_shell_survive_too(values: list[str]) -> None:
    """How a version of Snakemake quotes is tried, and not taken for granted."""
    with mock.patch.object(module, "format_cli_arg", shell_quoting):
        factory = SimpleNamespace(general_args=lambda **_: shell_quoting("--config", values))
        assert general_arguments(factory, common_settings) == ["--config", *values, *ADDED]


def test_unknown_quoting_is_refused() -> None:
    """No argument is split or changed: the run ends before it begins."""
    with (
        mock.patch.object(module, "format_cli_arg", lambda flag, value: f"{flag} {value}"),
        pytest.raises(WorkflowError, match="would get other values"),
    ):
        general_arguments(Factory("a"), common_settings)


def test_quotes_without_an_end_are_refused() -> None:
    """Such a text would be no arguments for a shell either."""
    with pytest.raises(WorkflowError, match="quotes without an end"):
        general_arguments(SimpleNamespace(general_args=lambda **_: "--config 'a b"), common_settings)


@pytest.mark.parametrize("path", ["a b", "it's", 'say "so"', "plain"])
def test_paths_survive(path: str) -> None:
    """Snakemake quotes paths for a shell, and texts for Python."""
    arguments = general_arguments(Factory([Path(path), "x y"]), common_settings)
    assert arguments == ["--force", "--retries", "0", "--config", path, "x y", *ADDED]


def test_each_job_has_its_own_most_threads() -> None:
    """The user's `--max-threads` is no general argument: it would win over what a job holds."""
    assert general_arguments(Factory(4, "--max-threads"), common_settings) == ["--force", "--retries", "0", *ADDED]


def test_rules_that_no_parser_reads_travel_as_overrides() -> None:
    """Names with leading dashes, colons and commas: an argument stands in for them, and is replaced."""
    target = [TargetSpec("-n", {}), TargetSpec("a:b,c", {"x": "1"})]
    arguments, overrides = job(target=target, rules=["-n", "a:b,c"])
    assert [tuple(spec) for spec in overrides["target_jobs"]] == [tuple(spec) for spec in target]
    assert overrides["allowed_rules"] == ["-n", "a:b,c"]
    assert not {"-n", "a:b,c"} & set(arguments)
