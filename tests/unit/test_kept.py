"""How a cluster that stays is recognised, and where it is written down."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.cli.commands import main
from snakemake_executor_plugin_dask.config.configure import configure
from snakemake_executor_plugin_dask.kept import directory, joining, recognise
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.kept import asked_of_pools, differences, name_of
from snakemake_executor_plugin_dask.model.options import Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.former import this_process
from snakemake_executor_plugin_dask.node.machine import Machine
from snakemake_executor_plugin_dask.settings import ExecutorSettings

HELD: list[state.Held] = []
POOL = Pool("main", "slurm", 0, 2, 4, 4000, walltime_s=7200.0)
OPTIONS = Options(pools=(POOL,), keep_s=60.0)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state"), "SBATCH_ACCOUNT": "physics", "PWD": "/somewhere"}


def bring_up(options: Options, environment: dict[str, str]) -> Path:
    """What a head writes down, as if this process were it."""
    asked = recognise.asked_for(options, environment)
    where = directory.root(environment) / name_of(asked)
    assert directory.make(where)
    HELD.append(state.Held(where))
    directory.write(where, directory.Record(where.name, asked, options, this_process(), ("127.0.0.1", 1), time.time()))
    return where


def test_names_follow_from_what_was_asked_for(environment: dict[str, str]) -> None:
    """The same for the same, whatever else the environment holds; another one where an account or a size differs."""
    asked = recognise.asked_for(OPTIONS, environment)
    assert name_of(asked) == name_of(recognise.asked_for(OPTIONS, environment | {"PWD": "/elsewhere", "WHO": "me"}))
    assert recognise.is_name(name_of(asked))
    for other in (
        recognise.asked_for(OPTIONS, environment | {"SBATCH_ACCOUNT": "biology"}),
        recognise.asked_for(replace(OPTIONS, pools=(replace(POOL, walltime_s=3600.0),)), environment),
        recognise.asked_for(replace(OPTIONS, scheduler_interface="ib0"), environment),
    ):
        assert name_of(other) != name_of(asked)


def test_what_a_run_is_told_of_itself_belongs_to_the_run(environment: dict[str, str]) -> None:
    """Limits, starts and reports do not tell clusters apart."""
    other = replace(
        OPTIONS, enforce_memory=False, job_start="cold", report="/r.html", keep_s=7.0, lost_worker_retries=9
    )
    assert recognise.asked_for(other, environment) == recognise.asked_for(OPTIONS, environment)


def test_differences_are_named_in_words() -> None:
    """Part, field and both values; times as people write them."""
    other = replace(OPTIONS, pools=(replace(POOL, walltime_s=14400.0, cores=8),), scheduler_interface="ib0")
    assert differences(asked_of_pools(OPTIONS), asked_of_pools(other)) == [
        "pool main: cores 4, 8",
        "pool main: walltime 2h, 4h",
        "scheduler: interface none, ib0",
    ]


def test_dasks_configuration_tells_clusters_apart(environment: dict[str, str], tmp_path: Path) -> None:
    """By its files, whose content counts."""
    config = tmp_path / "dask"
    config.mkdir()
    environment["DASK_CONFIG"] = str(config)
    before = name_of(recognise.asked_for(OPTIONS, environment))
    (config / "jobqueue.yaml").write_text("jobqueue: {slurm: {queue: long}}")
    assert name_of(recognise.asked_for(OPTIONS, environment)) != before


def test_a_run_takes_the_cluster_that_is_up(environment: dict[str, str]) -> None:
    """Also one that keeps nothing; one that asks for something else is told the difference, and has its own."""
    asking = replace(OPTIONS, keep_s=0.0)
    assert recognise.choose(asking, asking, environment) == (None, [])
    where = bring_up(OPTIONS, environment)
    kept, notes = recognise.choose(asking, asking, environment)
    assert kept is not None
    assert (kept.name, kept.directory, kept.named, notes) == (where.name, os.fspath(where), False, [])
    longer = replace(asking, pools=(replace(POOL, walltime_s=14400.0),))
    kept, notes = recognise.choose(longer, longer, environment)
    assert kept is None
    assert notes == [f"Cluster {where.name} is up and is not used: it differs in pool main: walltime 2h, 4h."]


def test_a_named_cluster_gives_its_pools(environment: dict[str, str]) -> None:
    """A run keeps its other settings; a name of none that is up is refused with those that are."""
    where = bring_up(OPTIONS, environment)
    mine = Options(pools=(Pool("local", "local"),), lost_worker_retries=9)
    options = recognise.named(where.name, mine, environment)
    assert (options.pools, options.lost_worker_retries, options.kept) == ((POOL,), 9, where.name)
    with pytest.raises(ConfigurationError, match=f"those that are up: {where.name}"):
        recognise.named("00000000", mine, environment)


def test_one_of_two_makes_the_directory(environment: dict[str, str]) -> None:
    """Nobody else can enter it, and where it cannot be made, one sentence says what to change."""
    where = directory.root(environment) / "abcdef01"
    assert directory.make(where)
    assert not directory.make(where)
    assert where.stat().st_mode & 0o777 == 0o700
    assert directory.fate(where) == "alive"  # its head is only starting
    os.utime(where, (0, 0))
    assert directory.fate(where) == "dead"
    directory.root(environment).parent.joinpath("file").write_text("")
    with pytest.raises(ConfigurationError, match=r"omit --dask-keep"):
        directory.make(Path(environment["XDG_STATE_HOME"], "file", "snakemake-dask", "abcdef01"))


def test_others_who_can_write_there_are_refused(environment: dict[str, str]) -> None:
    """A directory that a group may write holds no cluster."""
    root = directory.root(environment)
    root.mkdir(parents=True)
    root.chmod(0o770)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        directory.make(root / "abcdef01")


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"keep": "soon"}, "--dask-keep"), ({"keep": "30"}, "no unit"), ({"keep": "-1h"}, "--dask-keep")],
)
def test_keep_times_are_checked(settings: dict[str, str], word: str) -> None:
    """One sentence with the setting's name."""
    with pytest.raises(ConfigurationError, match=word):
        configure(ExecutorSettings(**settings), {}, Machine(cores=2, memory_mb=4000))


def test_a_site_sets_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that set one the lowest counts, so that a user's file does not lift the site's; 0 forbids it."""
    for name in ("site", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "a.yaml").write_text("jobqueue: {slurm: {queue: long}}\nsnakemake-dask: {keep-at-most: 2h}\n")
    (tmp_path / "mine" / "b.yaml").write_text("snakemake_dask: {keep_at_most: 9h}\n")
    environment = {"DASK_ROOT_CONFIG": str(tmp_path / "site"), "DASK_CONFIG": str(tmp_path / "mine")}

    def keep(asked: str, environment: dict[str, str]) -> tuple[float, str]:
        options, warnings = configure(ExecutorSettings(keep=asked), environment, Machine(cores=2, memory_mb=4000))
        return options.keep_s, " ".join(warnings)

    assert keep("8h", environment) == (
        7200.0,
        f"--dask-keep is 8h, and {tmp_path}/site/a.yaml lets clusters stay for 2h at most.",
    )
    assert keep("1h", environment) == (3600.0, "")
    assert keep("8h", environment | {"DASK_SNAKEMAKE_DASK__KEEP_AT_MOST": "0"})[0] == 0.0
    (tmp_path / "site" / "a.yaml").write_text("snakemake-dask: {keep-at-most: 2}")
    with pytest.raises(ConfigurationError, match=r"a\.yaml sets snakemake-dask\.keep-at-most to '2'"):
        keep("1h", environment)
    assert keep("0", environment) == (0.0, "")  # it is nothing to a run that keeps nothing
    (tmp_path / "site" / "a.yaml").write_text("snakemake-dask: {keep-at-most: 0}")
    for name, value in (environment | {"XDG_STATE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    assert main(["start", "--dask-keep", "1h"]) == 1


def test_a_launchers_workers_stay_not() -> None:
    """A warning says that --dask-keep is ignored there."""
    options, warnings = configure(ExecutorSettings(cluster="mpi", keep="1h"), {}, Machine(cores=2, memory_mb=4000))
    assert options.keep_s == 0.0
    assert any("--dask-keep is ignored" in warning for warning in warnings)


def test_the_command_says_what_is_missing(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start without a keep time, a stop without a name, a name that nobody has."""
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    for arguments, word in (
        (["start"], "--dask-keep"),
        (["stop"], "--all"),
        (["stop", "abcdef01"], "none is up"),
        (["start", "--profile", "/nowhere"], "config.yaml"),
    ):
        assert main(arguments) == 1
        assert word in capsys.readouterr().err
    assert main(["clusters"]) == 0
    assert "No cluster is up." in capsys.readouterr().out


def test_a_dead_clusters_directory_is_cleared(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stop` cancels what its record names, and removes it."""
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    where = bring_up(OPTIONS, environment)
    HELD.pop().release()
    (where / "lock").write_bytes(replace(this_process(), pid=2**22 + 1).to_json())
    assert main(["stop", where.name]) == 0
    assert "was dead" in capsys.readouterr().out
    assert not where.exists()


@pytest.mark.parametrize(
    ("text", "ends"), [("#KillUserProcesses=no\n", False), ("[Login]\nKillUserProcesses = yes\n", True), (None, False)]
)
def test_what_ends_a_head_is_known(tmp_path: Path, text: str | None, ends: bool) -> None:
    """The allocation that it is started in, and a host that ends users' processes at logout."""
    (tmp_path / "etc/systemd/logind.conf.d").mkdir(parents=True)
    if text is not None:
        (tmp_path / "etc/systemd/logind.conf.d/site.conf").write_text(text)
    assert (joining.ends_with({}, tmp_path) is not None) == ends
    inside = joining.ends_with({"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1"}, tmp_path)
    assert inside is not None
    assert "allocation of slurm (17)" in inside


def test_only_what_is_dead_is_cleared_up(environment: dict[str, str]) -> None:
    """Whoever comes late, and finds the next cluster in the place of the dead one, touches nothing of it."""
    where = bring_up(OPTIONS, environment)
    before = sorted(path.name for path in where.iterdir())
    assert joining.clear_up(where) == []
    assert sorted(path.name for path in where.iterdir()) == before


def test_one_of_several_clears_up(environment: dict[str, str]) -> None:
    """While one does, the others leave it alone; one that died at it holds nobody up for long."""
    where = bring_up(OPTIONS, environment)
    HELD.pop().release()
    (where / "lock").write_bytes(replace(this_process(), pid=2**22 + 1).to_json())
    (where / "clearing").mkdir()
    assert joining.clear_up(where) == []
    assert where.exists()
    os.utime(where / "clearing", (0, 0))
    assert joining.clear_up(where) == []
    assert not where.exists()


def test_a_state_directory_that_cannot_be_read_is_nothing_to_runs_that_keep_nothing(
    environment: dict[str, str],
) -> None:
    """With --dask-keep it is one sentence."""
    root = directory.root(environment)
    root.mkdir(parents=True)
    root.chmod(0o770)
    assert recognise.choose(replace(OPTIONS, keep_s=0.0), replace(OPTIONS, keep_s=0.0), environment) == (None, [])
    with pytest.raises(ConfigurationError, match="omit --dask-keep"):
        recognise.choose(OPTIONS, OPTIONS, environment)
