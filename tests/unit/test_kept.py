"""How a cluster that stays is recognised, and where it is written down."""

import asyncio
import errno
import os
import pickle
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from deciding import facts_of, hold
from supervising import run_setup
from unreadable import OfAnotherVersion

from snakemake_executor_plugin_dask.batch.allocations import Ran
from snakemake_executor_plugin_dask.cli.commands import main
from snakemake_executor_plugin_dask.config.configure import configure
from snakemake_executor_plugin_dask.decide.ledger import Ledger
from snakemake_executor_plugin_dask.driver.cluster import NotNow
from snakemake_executor_plugin_dask.driver.head.others import HeldByOthers
from snakemake_executor_plugin_dask.driver.head.runs import AllRuns, Expected, Share
from snakemake_executor_plugin_dask.driver.head.written import Written, is_gone, refusal
from snakemake_executor_plugin_dask.driver.jobs import Attempt, State
from snakemake_executor_plugin_dask.driver.pools import Pools, made_by_slurm
from snakemake_executor_plugin_dask.kept import directory, joining, recognise
from snakemake_executor_plugin_dask.kept.place import is_name, root
from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.model.jobs import Beginning
from snakemake_executor_plugin_dask.model.kept import Coming, Kept, Told, asked_of_pools, differences, name_of
from snakemake_executor_plugin_dask.model.options import DashboardAddress, Options
from snakemake_executor_plugin_dask.model.pools import Pool
from snakemake_executor_plugin_dask.model.requests import Request
from snakemake_executor_plugin_dask.model.wire import frame
from snakemake_executor_plugin_dask.node import state, versions
from snakemake_executor_plugin_dask.node.daskfiles import files
from snakemake_executor_plugin_dask.node.former import Process, ancestor_with, this_process
from snakemake_executor_plugin_dask.node.machine import Machine
from snakemake_executor_plugin_dask.node.private import write_private
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
    where = root(environment) / name_of(asked)
    assert directory.make(where)
    HELD.append(state.Held(where))
    directory.write(where, directory.Record(where.name, asked, options, this_process(), ("127.0.0.1", 1), time.time()))
    return where


def test_names_follow_from_what_was_asked_for(environment: dict[str, str]) -> None:
    """The same for the same, whatever else the environment holds; another one where an account or a size differs."""
    asked = recognise.asked_for(OPTIONS, environment)
    assert name_of(asked) == name_of(recognise.asked_for(OPTIONS, environment | {"PWD": "/elsewhere", "WHO": "me"}))
    assert is_name(name_of(asked))
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


def test_other_code_and_other_groups_are_another_cluster(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same version number may hide other files; a group may be what opens the data, or pays."""
    before = recognise.asked_for(OPTIONS, environment)
    monkeypatch.setattr(directory, "_own_code", lambda: "other")
    other = recognise.asked_for(OPTIONS, environment)
    assert name_of(other) != name_of(before)
    assert differences(before, other)[0].startswith("installation: code")
    monkeypatch.undo()
    monkeypatch.setattr(os, "getgroups", lambda: [os.getegid(), 54321])
    assert name_of(recognise.asked_for(OPTIONS, environment)) != name_of(before)


def test_the_machine_counts_for_workers_on_it(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its cores, hard limits, and the allocation around. Elsewhere they do not count."""
    here, elsewhere = Options(pools=(Pool("local", "local", cores=1),)), OPTIONS

    def names(**variables: str) -> tuple[str, str]:
        both = [name_of(recognise.asked_for(options, environment | variables)) for options in (here, elsewhere)]
        return both[0], both[1]

    before = names()
    found = {before[0], names(SLURM_JOB_ID="17")[0], names(CUDA_VISIBLE_DEVICES="1")[0]}
    hard = resource.getrlimit
    for target, name, value in (
        (os, "sched_getaffinity", lambda _: {77}),
        (resource, "getrlimit", lambda which: (hard(which)[0], 12_345)),
        (directory, "this_process", lambda: replace(HERE, host="elsewhere")),
    ):
        with monkeypatch.context() as context:
            context.setattr(target, name, value)
            after = names()
        assert after[1] == before[1]
        found.add(after[0])
    assert len(found) == 6


def test_a_python_counts_whatever_its_name(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`python -m snakemake` and `snakemake` may be started by links to one; another environment or version counts."""
    before = name_of(recognise.asked_for(OPTIONS, environment))
    (tmp_path / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert name_of(recognise.asked_for(OPTIONS, environment)) == before
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert name_of(recognise.asked_for(OPTIONS, environment)) != before
    monkeypatch.undo()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert name_of(recognise.asked_for(OPTIONS, environment)) != before


def test_differences_are_named_in_words() -> None:
    """Part, field and both values; times as people write them."""
    other = replace(OPTIONS, pools=(replace(POOL, walltime_s=14400.0, cores=8),), scheduler_interface="ib0")
    assert differences(asked_of_pools(OPTIONS), asked_of_pools(other)) == [
        "pool main: cores 4, 8",
        "pool main: walltime 2h, 4h",
        "scheduler: interface none, ib0",
    ]


def test_dasks_configuration_tells_clusters_apart(environment: dict[str, str], tmp_path: Path) -> None:
    """By its files, whose content counts, but not by those that say nothing."""
    config = tmp_path / "dask"
    config.mkdir()
    environment["DASK_CONFIG"] = str(config)
    before = name_of(recognise.asked_for(OPTIONS, environment))
    (config / "jobqueue.yaml").write_text("# jobqueue:\n\n  # slurm:\n")  # as dask-jobqueue writes it
    assert name_of(recognise.asked_for(OPTIONS, environment)) == before
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
    where = root(environment) / "abcdef01"
    assert directory.make(where)
    assert not directory.make(where)
    assert where.stat().st_mode & 0o777 == 0o700
    assert directory.fate(where) == "alive"  # its head is only starting
    os.utime(where, (0, 0))
    assert directory.fate(where) == "dead"
    root(environment).parent.joinpath("file").write_text("")
    with pytest.raises(ConfigurationError, match=r"omit --dask-keep"):
        directory.make(Path(environment["XDG_STATE_HOME"], "file", "snakemake-dask", "abcdef01"))


def test_others_who_can_write_there_are_refused(environment: dict[str, str]) -> None:
    """A directory that a group may write holds no cluster."""
    clusters = root(environment)
    clusters.mkdir(parents=True)
    clusters.chmod(0o770)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        directory.make(clusters / "abcdef01")


def test_others_who_can_enter_a_clusters_directory_are_refused(environment: dict[str, str]) -> None:
    """A run that keeps is told; one that does not has a cluster of its own."""
    where = bring_up(OPTIONS, environment)
    where.chmod(0o750)
    told = r"other users can enter it \(mode 750\)"
    with pytest.raises(ConfigurationError, match=told):
        recognise.choose(OPTIONS, OPTIONS, environment)
    without = replace(OPTIONS, keep_s=0.0)
    assert recognise.choose(without, without, environment) == (None, [])
    kept, _ = recognise.choose(replace(OPTIONS, kept=where.name), replace(OPTIONS, kept=where.name), environment)
    assert kept is not None
    with pytest.raises(OSError, match=told):
        asyncio.run(joining.join(kept))
    HELD.pop().release()


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


def test_a_cluster_of_others_stays_as_they_want_it() -> None:
    """A warning says that --dask-keep is ignored there."""
    settings = ExecutorSettings(scheduler="tcp://10.0.0.1:8786", keep="1h")
    options, warnings = configure(settings, {}, Machine(cores=2, memory_mb=4000))
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


def test_a_profile_is_found_where_snakemake_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its directory, or by its name among the user's; its settings of this executor hold."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for place in (tmp_path / "mine", tmp_path / "config" / "snakemake" / "site"):
        place.mkdir(parents=True)
        (place / "config.yaml").write_text("executor: dask\ndask-keep: soon\njobs: 5\n")
    monkeypatch.chdir(tmp_path)
    for profile in ("mine", str(tmp_path / "mine"), "site"):
        assert main(["start", "--profile", profile]) == 1
        assert "--dask-keep is 'soon'" in capsys.readouterr().err
    assert main(["start", "--profile", "nobodys"]) == 1
    assert "has no config.yaml" in capsys.readouterr().err


def test_the_batch_script_is_the_outermost_process_of_an_allocation() -> None:
    """Whatever stands in between; a head ends with it."""
    ask = "from snakemake_executor_plugin_dask.node.former import ancestor_with; print(ancestor_with('{}', '17').pid)"
    inner = f'{shlex.quote(sys.executable)} -c "{ask.format("MY_JOB_ID")}"'
    script = ["sh", "-c", f"echo $$; env OTHER=1 sh -c {shlex.quote(inner + '; true')}; true"]
    done = subprocess.run(script, env=os.environ | {"MY_JOB_ID": "17"}, capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    assert first == second
    assert ancestor_with("MY_JOB_ID", "17") is None


def test_pools_of_further_runs_are_shared() -> None:
    """Whatever their names, and wherever their runs put what allocations print; others get names of their own."""
    there = replace(POOL, options={"log_directory": "/first/logs"})
    pools = Pools(Options(pools=(there,)), made_by_slurm(None))
    pools.share([replace(POOL, name="else", options={"log_directory": "/second/logs"})])
    assert list(pools.values()) == [there]
    pools.share([replace(POOL, cores=8)])
    assert list(pools) == ["main", "main-2"]


HERE = replace(this_process(), namespace="pid:[4026531836]")


@pytest.mark.parametrize(
    "head", [replace(this_process(), pid=2**22 + 1), replace(HERE, boot="before")], ids=["killed", "before a reboot"]
)
def test_a_dead_clusters_directory_is_cleared(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], head: Process
) -> None:
    """`stop` cancels what its record names, and removes it."""
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    where = bring_up(OPTIONS, environment)
    HELD.pop().release()
    (where / "lock").write_bytes(head.to_json())
    if head.boot == "before":
        monkeypatch.setattr(state, "this_process", lambda: HERE)
    assert main(["stop", where.name]) == 0
    assert "was dead" in capsys.readouterr().out
    assert not where.exists()


def on_another_host(environment: dict[str, str], within: directory.Within | None = None) -> Path:
    """What the head of a cluster on another host has written down."""
    where = bring_up(OPTIONS, environment)
    HELD.pop().release()
    head = replace(this_process(), host="elsewhere", boot="other", namespace="pid:[4026531836]")
    (where / "lock").write_bytes(head.to_json())
    record = directory.read(where)
    assert record is not None
    directory.write(where, replace(record, head=head, within=within))
    return where


def test_a_cluster_on_a_host_that_cannot_be_asked_is_left_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host is named; a run that is to keep its cluster brings one up beside it, which the next run here finds."""
    where = on_another_host(environment)
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    assert main(["stop", where.name]) == 1
    assert "stop it on elsewhere" in capsys.readouterr().err
    assert where.exists()
    kept, _ = recognise.choose(OPTIONS, OPTIONS, environment)
    assert kept is not None
    assert kept.name == where.name
    launched: list[Kept] = []

    class Ended:
        returncode = 1

        def poll(self) -> int:
            return 1

    def launch(kept: Kept, *, least: bool) -> Ended:
        launched.append(kept)
        return Ended()

    monkeypatch.setattr(joining, "launch", launch)
    with pytest.raises(ConfigurationError, match="did not come up"):
        asyncio.run(joining.join(kept))
    (beside,) = launched
    assert beside.name != where.name
    assert beside == joining.beside(kept)
    assert where.exists()
    link, _, said = asyncio.run(joining.join(replace(kept, keep_s=0.0)))
    assert link is None
    assert "is on elsewhere" in said[0]
    with pytest.raises(ConfigurationError, match="is on elsewhere"):
        asyncio.run(joining.join(replace(kept, named=True)))


@pytest.mark.parametrize(
    ("name", "queue", "found"),
    [("alps", "", "dead"), ("alps", "17|RUNNING|node1|None|N/A", "unknown"), ("jura", "", "unknown")],
    ids=["gone", "running", "of another cluster"],
)
def test_a_head_whose_allocation_is_gone_is_dead(
    environment: dict[str, str], name: str, queue: str, found: str
) -> None:
    """The batch system says so where the head cannot be asked, if it is the same one here."""
    where = on_another_host(environment, directory.Within("slurm", "alps", "17"))
    asked: list[str] = []

    def run(command: Sequence[str]) -> Ran:
        asked.append(command[0])
        if command[0] == "scontrol":
            return Ran(0, f"Configuration data\nClusterName             = {name}\n", "")
        return Ran(0, f"{queue}\n", "")

    assert joining.fate(where, run) == found
    assert asked[0] == "scontrol"


@pytest.mark.parametrize(
    ("variables", "inside"),
    [({"SLURMD_NODENAME": "n2"}, True), ({"SLURMD_NODENAME": "n7"}, False), ({}, False)],
    ids=["on a node of it", "on another's node", "on a login node"],
)
def test_an_allocation_counts_for_heads_on_its_nodes(variables: dict[str, str], *, inside: bool) -> None:
    """A session that was begun from `salloc` on a login node outlives the allocation, and its head with it."""
    found = directory.within({"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-3]"} | variables)
    assert found == (directory.Within("slurm", "", "17") if inside else None)


def test_heads_of_other_versions_are_read_by_name() -> None:
    """A field that they do not know has its default; one that only they know is passed over."""
    told = Told({"up": 2}, cores=8, until_s=5.0)
    assert pickle.loads(pickle.dumps(told)) == told
    older = object.__new__(Told)
    older.__setstate__({"until_s": 5.0, "workers": {"up": 2}, "cores": 8, "colour": "red"})  # type: ignore[attr-defined]
    assert older == told
    for state_ in ({"until_s": 5.0}, [{"up": 2}]):
        with pytest.raises(TypeError, match="of another version"):
            older.__setstate__(state_)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "thing",
    [replace(OPTIONS, dashboard=DashboardAddress("host", 5)), replace(POOL, options={"queue": "big"}), this_process()],
)
def test_what_a_record_holds_is_read_by_name(thing: Any) -> None:
    """Settings, pools and the head's process, too: none takes one field of another version for another one."""
    assert pickle.loads(pickle.dumps(thing)) == thing
    values = {"colour": "red"} | {name: getattr(thing, name) for name in reversed(thing.__slots__)}
    read = object.__new__(type(thing))
    read.__setstate__(values)
    assert read == thing
    without = {name: value for name, value in values.items() if name != "options"}
    if isinstance(thing, Pool):
        read.__setstate__(without)
        assert read == replace(thing, options={})
    with pytest.raises(TypeError, match="of another version"):
        read.__setstate__({})


def test_a_record_that_cannot_be_read_is_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a cluster that is up: to a run that would use it, to one that asks for another, and to who lists them."""
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    where = bring_up(OPTIONS, environment)
    write_private(where / "record.pickle", pickle.dumps(OfAnotherVersion()))
    others = replace(OPTIONS, pools=(replace(POOL, cores=8),))
    kept, notes = recognise.choose(others, others, environment)
    assert kept is not None
    assert kept.name != where.name
    assert notes == [f"Cluster {where.name} is up and is not used: it was brought up by another version of the plugin."]
    with pytest.raises(ConfigurationError, match="by another version of the plugin, whose own commands"):
        recognise.named(where.name, OPTIONS, environment)
    assert main(["clusters"]) == 0
    assert "is of another version" in capsys.readouterr().out
    HELD.pop().release()


def test_a_head_of_another_version_is_named(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its answer looks like to this one: its row says so, and `stop` how it ends."""
    monkeypatch.setenv("XDG_STATE_HOME", environment["XDG_STATE_HOME"])
    where = bring_up(OPTIONS, environment)

    async def connect(_where: Path) -> joining.Link:
        reader = asyncio.StreamReader()
        reader.feed_data(frame(OfAnotherVersion()))
        _, writer = await asyncio.open_unix_connection(str(listening))
        return reader, writer

    listening = Path(environment["XDG_STATE_HOME"]) / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(listening))
        listener.listen()
        monkeypatch.setattr(joining, "connect", connect)
        assert main(["clusters"]) == 0
        assert "is of another version" in capsys.readouterr().out
        assert main(["stop", where.name]) == 1
    assert f"ending its process {os.getpid()} on" in capsys.readouterr().err
    HELD.pop().release()


def test_a_record_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota that is reached does not end a cluster; it is said once."""
    said, written, fails, in_place = list[str](), list[directory.Record](), False, True

    def write(where: Path, record: directory.Record) -> None:
        assert where == tmp_path
        if fails:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        written.append(record)

    monkeypatch.setattr(directory, "write", write)
    record = directory.Record("abcdef01", {}, OPTIONS, this_process(), ("127.0.0.1", 1), 1000.0)
    with_pools = replace(record, options=replace(OPTIONS, pools=(POOL, replace(POOL, name="further"))))
    records = [record]
    kept = Written(tmp_path, lambda: records[-1], lambda _level, text: said.append(text), lambda: in_place)
    kept.write()
    records.append(with_pools)
    fails = True
    kept.keep()
    kept.keep()
    assert len(said) == 1
    assert "Disk quota exceeded" in said[0]
    fails = False
    kept.keep()
    kept.keep()
    assert written == records
    records.append(record)
    in_place = False  # another host has cleared up after it: what is there now is another cluster's
    kept.keep()
    assert written == records[:2]


def test_what_others_hold_is_compared_every_few_seconds() -> None:
    """And not at each look, where nothing has changed. Until there is something to tell it is, for short runs' sake."""
    compared = 0

    class Counted(list[str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal compared
            compared += 1
            return super().__iter__()

    ledger = Ledger()
    ledger.add_worker("main-0", POOL, facts_of(POOL, "main-0"), 0.0)
    others = HeldByOthers(ledger, Counted(["main"]), lambda key: key == "own")
    assert [others.news(now) for now in (1.0, 2.0, 3.0)] == [{}, {}, {}]
    assert compared == 3
    hold(ledger, "own", ["main-0"], Request(1, 500), 3.0)
    hold(ledger, "another's", ["main-0"], Request(2, 1500), 3.0)
    assert others.news(4.0) == {"main-0": {"cores": 2, "memory_mb": 1500, "gpus": 0, "jobs": 1}}
    assert [others.news(now) for now in (5.0, 6.0, 8.9)] == [{}, {}, {}]
    assert compared == 4
    ledger.release("another's", 8.9)
    assert others.news(9.0) == {"main-0": {"cores": 0, "memory_mb": 0, "gpus": 0, "jobs": 0}}
    assert compared == 5


def test_a_directory_of_dasks_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Dask does it; others count."""
    for name in ("shut", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("")
    iterdir = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path.name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    for shut in (tmp_path / "shut", tmp_path / ("n" * 300)):
        found = files({"DASK_ROOT_CONFIG": str(shut), "DASK_CONFIG": str(tmp_path / "open")})
        assert found[-1] == tmp_path / "open" / "a.yaml"
        assert not any(path.is_relative_to(shut) for path in found)


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
    clusters = root(environment)
    clusters.mkdir(parents=True)
    clusters.chmod(0o770)
    assert recognise.choose(replace(OPTIONS, keep_s=0.0), replace(OPTIONS, keep_s=0.0), environment) == (None, [])
    with pytest.raises(ConfigurationError, match="omit --dask-keep"):
        recognise.choose(OPTIONS, OPTIONS, environment)


@pytest.mark.parametrize("others", [False, True])
def test_a_run_that_cannot_begin_takes_no_other_runs_worker(tmp_path: Path, others: bool) -> None:
    """Its job has failed, with the reason. A worker that it has alone is given up, as one of its own would be."""

    async def call(*_: Any, within_s: float) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    async def submit() -> Any:
        member: Any = SimpleNamespace(name="cpu-0", address="tls://n1:1")
        core: Any = SimpleNamespace(fleet=SimpleNamespace(members={}, call=call))
        everybody = AllRuns(core, cast(Any, None), cast(Any, None))
        holding = SimpleNamespace(workers=["cpu-0" if others else "cpu-1"])
        sent = {"theirs": SimpleNamespace(attempt=SimpleNamespace(holding=holding))}
        everybody.controllers["other"] = cast(Any, SimpleNamespace(sent=sent))
        share = Share(everybody, run_setup(tmp_path), 1, again_s=0)
        attempt = Attempt("mine", 1, Request(cores=1))
        attempt.member = member
        attempt.state = State.SENT
        for _ in range(2):
            with pytest.raises(NotNow):
                await share.submit(attempt, cast(Any, None))
        return await share.submit(attempt, cast(Any, None))

    if others:
        outcome = asyncio.run(submit())
        assert (outcome.status, outcome.worker) == ("not-started", "cpu-0")
        assert "could not begin on worker cpu-0, where other runs have jobs" in outcome.detail
        assert "Disk quota exceeded" in outcome.detail
    else:
        with pytest.raises(OSError, match="quota"):
            asyncio.run(submit())


class Ahead:
    """A cluster's core with two workers, on which a run's supervisors get ready, or end."""

    def __init__(self) -> None:
        members = [SimpleNamespace(name=name, address=name, up=True) for name in ("cpu-0", "cpu-1")]
        self.fleet = SimpleNamespace(workers=lambda: members, call=self.call)
        self.asked: list[tuple[str, str]] = []  # what of which worker
        self.forgotten: list[str] = []
        self.ending = asyncio.Event()

    async def call(self, address: str, function: Any, *_: Any, within_s: float) -> None:
        self.asked.append((function.__name__, address))
        if function.__name__ == "end":
            self.ending.set()

    def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)


READY = [("begin_ahead", "cpu-0"), ("begin_ahead", "cpu-1")]
ENDED = [("end", "cpu-0"), ("end", "cpu-1")]


@pytest.mark.parametrize("silent", [True, False])
def test_a_run_that_does_not_come_leaves_no_supervisors(tmp_path: Path, silent: bool) -> None:
    """It says so by the end of its connection; or its host is gone, and nothing is heard of it for long."""

    async def play() -> None:
        core, left, reader = Ahead(), list[bool](), asyncio.StreamReader()
        everybody = AllRuns(cast(Any, core), cast(Any, None), cast(Any, None))
        coming = Coming("abc12345", Beginning.of(run_setup(tmp_path)), 5)
        expected = Expected(everybody, coming, lambda: left.append(True))
        if not silent:
            reader.feed_eof()
        await expected.wait(reader, 0.01 if silent else 60.0)
        assert core.asked == READY + ENDED
        assert core.forgotten == ["abc12345"]
        assert left

    asyncio.run(asyncio.wait_for(play(), 30))


@pytest.mark.parametrize("late", [True, False])
def test_a_run_that_comes_keeps_its_supervisors(tmp_path: Path, late: bool) -> None:
    """Also one that comes while they are being given back: what they say of its jobs is heard."""

    async def play() -> None:
        core, reader = Ahead(), asyncio.StreamReader()
        everybody = AllRuns(cast(Any, core), cast(Any, None), cast(Any, None))
        coming = Coming("abc12345", Beginning.of(run_setup(tmp_path)), 5)
        expected = Expected(everybody, coming, reader.feed_eof)
        waiting = asyncio.ensure_future(expected.wait(reader))
        await expected.begun()
        if late:
            reader.feed_eof()
            await core.ending.wait()
        expected.leave()
        await waiting
        assert core.asked[:2] == READY
        assert late or not core.asked[2:]
        assert not core.forgotten

    asyncio.run(asyncio.wait_for(play(), 30))


def test_what_is_being_installed_ends_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directories of the package that go while they are read make it another one, and nothing else."""
    package = tmp_path / "package"
    for path in ("a.py", "model/b.py", "node/versions.py"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text("")
    monkeypatch.setattr(versions, "__file__", str(package / "node" / "versions.py"))
    whole, read = versions.installed_code(), Path.read_bytes
    assert refusal(lambda: True, whole) == ""

    def vanish(path: Path) -> bytes:
        (package / "model" / "b.py").unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", vanish)
    assert versions.installed_code() != whole
    assert refusal(lambda: True, whole) == versions.REINSTALLED


def test_a_file_system_that_is_stale_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to take a cluster's directory for gone, nor to start no more workers."""

    def stale(*_: Any) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    assert not is_gone(stale)
    monkeypatch.setattr(Path, "read_bytes", stale)
    assert refusal(lambda: True, "abc") == ""
    assert "own files are gone" in refusal(lambda: False, "abc")
