"""Directories and files that nobody but the user can change; what became of former processes."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.model.errors import ConfigurationError
from snakemake_executor_plugin_dask.node import state
from snakemake_executor_plugin_dask.node.former import Process, judge, this_process
from snakemake_executor_plugin_dask.node.logs import open_log, tail, usable_log
from snakemake_executor_plugin_dask.node.private import (
    NotPrivate,
    append_private,
    open_own,
    opened,
    read_private,
    write_private,
)


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077])
def umask(request: pytest.FixtureRequest):
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_a_state_directory_is_the_users_alone(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, and in a directory that hands its group on."""
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / ".snakemake").chmod(0o2777)
    run = tmp_path / ".snakemake" / "dask" / "run1"
    state.make(run)
    assert [path.stat().st_mode & 0o777 for path in (run.parent, run)] == [0o700, 0o700]
    write_private(run / "key", b"secret")
    os.close(append_private(run / "log"))
    assert [(run / name).stat().st_mode & 0o777 for name in ("key", "log")] == [0o600, 0o600]
    assert [path.name for path in sorted(run.iterdir())] == ["key", "log"]


def test_one_that_others_could_only_read_is_closed(tmp_path: Path) -> None:
    """Earlier releases made it with the umask."""
    root = tmp_path / ".snakemake" / "dask"
    root.mkdir(parents=True, mode=0o755)
    state.check(root)
    state.make(root / "run1")
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["group", "others", "link", "file", "owner"])
def test_a_state_directory_of_others_is_refused(tmp_path: Path, kind: str) -> None:
    """One sentence that says what is wrong, and what to do; nothing in it is touched."""
    root = tmp_path / ".snakemake" / "dask"
    root.mkdir(parents=True)
    (root / "run1").mkdir()
    (root / "run1" / "key").write_text("x")
    if kind in ("group", "others"):
        root.chmod(0o770 if kind == "group" else 0o757)
    elif kind == "link":
        root.rename(tmp_path / "elsewhere")
        root.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        root.rename(tmp_path / "elsewhere")
        root.write_text("")
    elif os.geteuid() != 0:
        pytest.skip("only root can give a directory to another user")
    else:
        os.chown(root, 12345, -1)
    for act in (lambda: state.check(root), lambda: state.make(root / "run2")):
        with pytest.raises(ConfigurationError, match=r"which nobody else may write, but .*; remove it, or run"):
            act()
    for act in (lambda: list(state.former_runs(root)), lambda: state.clear(root / "run1", keep_logs=False)):
        with pytest.raises(NotPrivate):
            act()
    kept = root if kind != "file" else tmp_path / "elsewhere"
    assert (kept / "run1" / "key").exists()


def test_clearing_follows_no_link(tmp_path: Path) -> None:
    """Neither one in the place of a run's directory, nor one inside it; and only that directory is cleared."""
    root = tmp_path / ".snakemake" / "dask"
    state.make(root / "run1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    (root / "run1" / "inner").symlink_to(tmp_path / "mine")
    (root / "run1" / "a.log").write_text("kept")
    (root / "run2").symlink_to(tmp_path / "mine")
    state.clear(root / "run1", keep_logs=True)
    assert [path.name for path in (root / "run1").iterdir()] == ["a.log"]
    with pytest.raises(NotPrivate):
        state.clear(root / "run2", keep_logs=False)
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    assert [path.name for path, _, _ in state.former_runs(root)] == ["run1"]


def test_a_held_directory_stays_the_one_it_was(tmp_path: Path) -> None:
    """What is put in its place while the run lives is not cleared, and the run's keys are."""
    root = tmp_path / ".snakemake" / "dask"
    state.make(root / "run1")
    write_private(root / "run1" / "key", b"secret")
    held = state.Held(root / "run1")
    root.rename(tmp_path / "moved")
    state.make(root / "run1")
    (root / "run1" / "other").write_text("stays")
    held.clear(keep_logs=False)
    held.release()
    assert (root / "run1" / "other").exists()
    assert not list((tmp_path / "moved").iterdir())


def test_files_are_not_followed_nor_believed(tmp_path: Path) -> None:
    """Links, second names, pipes, and files that others can write."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        for use in (read_private, open_own, lambda path: os.close(open_log(path))):
            with pytest.raises(NotPrivate):
                use(os.fspath(tmp_path / name))
    os.link(victim, tmp_path / "second")
    with pytest.raises(NotPrivate, match="hard link"):
        open_log(os.fspath(tmp_path / "second"))
    victim.chmod(0o664)
    with pytest.raises(NotPrivate, match="mode 664"):
        read_private(victim)
    # What lay in wait under the name of a file that is written goes, and where it pointed stays as it is.
    write_private(tmp_path / "link", b"new")
    assert (victim.read_text(), (tmp_path / "link").read_bytes()) == ("mine", b"new")
    assert not (tmp_path / "link").is_symlink()


def test_a_log_under_a_planted_link(tmp_path: Path) -> None:
    """It is written elsewhere, which is said; where the link points stays as it is, and is never shown."""
    (tmp_path / "victim").write_text("secret")
    (tmp_path / "job.log").symlink_to(tmp_path / "victim")
    path, why = usable_log(os.fspath(tmp_path / "job.log"), [os.fspath(tmp_path)])
    assert path != os.fspath(tmp_path / "job.log")
    assert "link" in why
    assert tail(os.fspath(tmp_path / "job.log")) == ""
    assert (tmp_path / "victim").read_text() == "secret"


def test_directories_are_opened_without_following_a_link(tmp_path: Path) -> None:
    """Not even one to a directory of the user's own."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotPrivate), opened(tmp_path / "link"):
        pass
    with pytest.raises(NotPrivate):
        write_private(tmp_path / "link" / "file", b"")


HERE = Process("login1", "boot-a", "pid:[4026531836]", 10, "500")


@pytest.mark.parametrize(
    ("change", "starts", "fate"),
    [
        ({}, {7: "400"}, "alive"),
        ({}, {7: "401"}, "dead"),
        ({}, {}, "dead"),
        ({"host": "renamed"}, {7: "400"}, "alive"),
        ({"boot": "boot-b"}, {7: "400"}, "dead"),
        ({"boot": "boot-b", "host": "login2"}, {}, "unknown"),
        ({"boot": "boot-b", "namespace": "pid:[1]"}, {}, "unknown"),
        ({"namespace": "pid:[1]"}, {7: "400"}, "unknown"),
        ({"start": ""}, {}, "dead"),
    ],
)
def test_what_became_of_a_former_process(change: dict[str, str], starts: dict[int, str], fate: str) -> None:
    """Alive, dead, or unknown: of another machine or container nobody here can tell."""
    former = dataclasses.replace(HERE, **{"pid": 7, "start": "400"} | change)
    assert judge(former, HERE, lambda pid: starts.get(pid, "")) == fate


def test_a_process_is_known_again() -> None:
    """This one is alive, one that has ended is dead, and what is no process is unknown."""
    here = this_process()
    assert judge(Process.from_json(here.to_json()), here) == "alive"
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert judge(dataclasses.replace(here, pid=ended.pid, start="1"), here) == "dead"
    for data in (
        b"",
        b"{}",
        b"[]",
        b'{"host": 1}',
        here.to_json()[:-5],
        here.to_json().replace(b'"pid": ', b'"pid": "x", "q": '),
    ):
        assert judge(Process.from_json(data), here) == "unknown"
