"""Each setting, through the command line and through a profile, as Snakemake's own parser reads them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake import cli
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from snakemake_executor_plugin_dask import ExecutorSettings, common_settings
from snakemake_executor_plugin_dask.config.configure import configure
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node.machine import Machine
from snakemake_executor_plugin_dask.settings import too_old

#: One value for each setting, different from its default; a new setting without one here makes a test fail.
VALUES: dict[str, str | bool] = {
    "cluster": "slurm",
    "pools": "my-pools.yaml",
    "scheduler": "tls://10.0.0.1:8786",
    "workers": "0-10",
    "worker_cores": "48",
    "worker_memory": "180 GB",
    "worker_gpus": "4",
    "walltime": "04:00:00",
    "options": '{queue: boost, account: cin_staff, interface: ib0, job_extra_directives: ["--tasks-per-node=1"]}',
    "idle_timeout": "90",
    "keep": "2h",
    "job_start": "cold",
    "enforce": "none",
    "lost_worker_retries": "0",
    "logdir": "my logs",
    "keep_successful_logs": True,
    "dashboard": "127.0.0.1:8787",
    "report": "report.html",
    "plan": True,
    "plan_scripts": "scripts",
}
NAMES = [field.name for field in dataclasses.fields(ExecutorSettings)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake looks for a Snakefile and for profiles where it runs."""
    monkeypatch.chdir(tmp_path)


def parse(*arguments: str) -> ExecutorSettings:
    """What Snakemake makes of its command line."""
    _, args = cli.parse_args(["--executor", "dask", "--jobs", "1", *arguments])
    settings = ExecutorPluginRegistry().get_plugin("dask").get_settings(args)
    assert isinstance(settings, ExecutorSettings)
    return settings


def parse_profile(text: str) -> ExecutorSettings:
    Path("profile").mkdir(exist_ok=True)
    Path("profile", "config.yaml").write_text(text)
    return parse("--profile", "profile")


def problem(settings: ExecutorSettings) -> str:
    """The one complaint about the settings."""
    with pytest.raises(ConfigurationError) as raised:
        configure(settings, {}, Machine(cores=4, memory_mb=8000))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def flag(name: str) -> str:
    return "--dask-" + name.replace("_", "-")


def test_all_settings_are_tested() -> None:
    """The table above holds every setting."""
    assert sorted(VALUES) == sorted(NAMES)


def test_nothing_given() -> None:
    """Without any setting the defaults are those of the class."""
    assert parse() == ExecutorSettings()


@pytest.mark.parametrize("name", NAMES)
def test_on_the_command_line(name: str) -> None:
    """A setting given on the command line arrives, and no other one changes."""
    value = VALUES[name]
    arguments = [flag(name)] if value is True else [flag(name), str(value)]
    assert parse(*arguments, "target") == dataclasses.replace(ExecutorSettings(), **{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_in_a_profile(name: str) -> None:
    """A setting in a profile, by the same name without the dashes in front, arrives as on the command line."""
    text = f"{flag(name)[2:]}: {json.dumps(VALUES[name])}\n"
    assert parse_profile(text) == dataclasses.replace(ExecutorSettings(), **{name: VALUES[name]})


@pytest.mark.parametrize("name", ["keep_successful_logs", "plan"])
def test_flag_that_a_profile_leaves_off(name: str) -> None:
    """A flag that is false in a profile is not set."""
    assert parse_profile(f"{flag(name)[2:]}: false\n") == ExecutorSettings()


def test_command_line_wins_over_a_profile() -> None:
    """What a site's profile says can be replaced for one run."""
    Path("profile").mkdir()
    Path("profile", "config.yaml").write_text("dask-cluster: slurm\ndask-workers: 0-10\n")
    settings = parse("--profile", "profile", "--dask-cluster", "local")
    assert (settings.cluster, settings.workers) == ("local", "0-10")


def test_numbers_in_a_profile_need_no_quotes() -> None:
    """Numbers in a profile are read as on the command line."""
    settings = parse_profile(
        "dask-workers: 2\ndask-worker-cores: 1\ndask-idle-timeout: 5\ndask-lost-worker-retries: 0\n"
    )
    options, _ = configure(settings, {}, Machine(cores=4, memory_mb=8000))
    pool = options.pools[0]
    assert (pool.workers_max, pool.cores, pool.idle_timeout_s, options.lost_worker_retries) == (2, 1, 5, 0)


@pytest.mark.parametrize(("written", "read"), [("12:00:00", "43200"), ("1:20", "80"), ("1:30:00", "5400")])
def test_unquoted_time_in_a_profile(written: str, read: str) -> None:
    """YAML takes a time with colons for a number in base 60; the complaint says what happened."""
    complaint = problem(parse_profile(f"dask-cluster: slurm\ndask-walltime: {written}\n"))
    assert f"--dask-walltime is '{read}'" in complaint
    assert f"(in a profile YAML reads an unquoted {written} as {read})" in complaint


def test_options_as_block_text_in_a_profile() -> None:
    """A block text carries options through a profile."""
    settings = parse_profile("dask-cluster: slurm\ndask-options: |\n  queue: boost\n  account: cin_staff\n")
    options, _ = configure(settings, {}, Machine(cores=4, memory_mb=8000))
    assert options.pools[0].options == {"queue": "boost", "account": "cin_staff"}


def test_options_as_a_file_beside_the_profile() -> None:
    """A file beside the profile carries options of any length."""
    Path("profile").mkdir()
    Path("profile", "options.yaml").write_text("queue: boost\njob_script_prologue:\n" + "- module load a\n" * 100)
    settings = parse_profile("dask-cluster: slurm\ndask-options: options.yaml\n")
    options, _ = configure(settings, {}, Machine(cores=4, memory_mb=8000))
    assert len(options.pools[0].options["job_script_prologue"]) == 100


def test_documentation() -> None:
    """The documentation names each setting in a table, and the profile shown there is read as it means."""
    page = Path(__file__).parents[2].joinpath("docs", "settings.md").read_text(encoding="utf-8")
    assert all(f"| `{flag(name)}` |" in page for name in NAMES)
    (profile,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    options, warnings = configure(parse_profile(profile), {}, Machine(cores=4, memory_mb=8000))
    assert not warnings
    expected = {"queue": "boost", "account": "cin_staff"}
    assert options.pools == (Pool("slurm", "slurm", 0, 10, 48, 180_000, walltime_s=14_400, options=expected),)


def test_mapping_in_a_profile_is_dropped() -> None:
    """Snakemake drops a mapping without a word, which is why the documentation shows a block text."""
    assert parse_profile("dask-options: {queue: boost}\n").options is None


def test_help_lists_each_setting_once() -> None:
    """`snakemake --help` shows each setting with a sentence that stands alone."""
    text = cli.get_argument_parser().format_help()
    for name in NAMES:
        assert len(re.findall(rf"\n  {flag(name)}\s", text)) == 1, name


def test_catalog() -> None:
    """The plugin catalog prints each setting as JSON; each has a help that is a sentence."""
    information = ExecutorPluginRegistry().get_plugin("dask").get_settings_info()
    assert [entry["name"] for entry in json.loads(json.dumps(information))] == NAMES
    for entry in information:
        assert entry["help"][0].isupper()
        assert entry["help"].endswith(".")


def test_common_settings() -> None:
    """Jobs run elsewhere, on a shared file system unless the user says no, and secrets stay off command lines."""
    assert common_settings.non_local_exec
    assert not common_settings.implies_no_shared_fs
    assert not common_settings.pass_envvar_declarations_to_cmd


def test_one_of_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started as a rank, Snakemake stops before it has touched the workflow."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    with pytest.raises(WorkflowError, match="one of 3 ranks"):
        ExecutorSettings()


def test_an_old_snakemake_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was installed all the same is named at the start, with what to do."""
    assert [too_old(text) for text in ("9.19.0", "9.27.1.dev3+g12ab", "10.0.0", "unknown")] == [None] * 4
    assert too_old("9.2.0") is not None
    monkeypatch.setattr("snakemake_executor_plugin_dask.settings.version", {"snakemake": "9.18.2"}.get)
    with pytest.raises(WorkflowError) as caught:
        ExecutorSettings()
    assert str(caught.value) == (
        "The dask executor needs Snakemake 9.19 or newer, and this is Snakemake 9.18.2; install a newer one: "
        "pip install --upgrade 'snakemake>=9.19,<10'."
    )


def test_several_ranks_of_a_real_snakemake() -> None:
    """Each rank ends with one sentence and exit code 1, and leaves no trace in the working directory."""
    Path("Snakefile").write_text("rule all:\n    output: 'a'\n    shell: 'touch a'\n")
    environment = os.environ | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--executor", "dask", "--jobs", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("one of 2 ranks by srun") == 1
    assert os.listdir() == ["Snakefile"]


def test_import_is_light() -> None:
    """What Snakemake imports in each of its processes loads nothing of Dask, and the bare package next to nothing."""
    code = (
        "import sys, snakemake_executor_plugin_dask as plugin\n"
        "bare = set(sys.modules)\n"
        "assert not any(name.partition('.')[0] in {'asyncio', 'snakemake', 'yaml'} for name in bare), sorted(bare)\n"
        "plugin.ExecutorSettings, plugin.common_settings, plugin.Executor\n"
        "heavy = {'dask', 'distributed', 'dask_jobqueue', 'dask_cuda', 'cryptography', 'bokeh'}\n"
        "found = {name.partition('.')[0] for name in sys.modules} & heavy\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
