"""What a job updates is as it was before, however an attempt ended; what another run left has no part in it."""

import errno
import shutil
import threading
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.model.jobs import Update
from snakemake_executor_plugin_dask.node.updates import before_the_job, ended, prepare

directories = pytest.mark.parametrize("directory", [False, True])


def written(path: Path, text: str, *, directory: bool) -> None:
    """The file, or a directory with it and another one."""
    file = path / "file" if directory else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if directory:
        (path / "deeper").mkdir(exist_ok=True)
        (path / "deeper" / "other").write_text("other")


def text_of(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


def start(update: Update, *, again: bool = False) -> None:
    prepare([update], threading.Event(), again=again)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Of an output, and of Snakemake's backup of it."""
    return tmp_path / "output", tmp_path / "backups" / "output"


@directories
@pytest.mark.parametrize("finished", [False, True])
def test_a_start_whose_end_is_not_known_is_undone(places: tuple[Path, Path], directory: bool, finished: bool) -> None:
    """Also where the job was done, so that its Snakemake has removed its backup. As often as need be."""
    output, backup = places
    written(output, "whole", directory=directory)
    update = before_the_job(str(output), str(backup), "1")
    start(update)
    for _ in range(2):
        if not finished:
            written(backup, "wh", directory=directory)
        written(output, "whole and more", directory=directory)
        start(update, again=True)
        assert text_of(output) == "whole"
        assert not backup.exists()
    assert ended(update, "accepted")
    assert not list(backup.parent.iterdir())


@directories
def test_a_failed_one_hands_over_what_was_there_before(places: tuple[Path, Path], directory: bool) -> None:
    """Snakemake's main process takes it from its own place; of one that never started there is nothing to take."""
    output, backup = places
    written(output, "whole", directory=directory)
    update = before_the_job(str(output), str(backup), "1")
    assert not ended(update, "failed")
    start(update)
    written(output, "whole and half", directory=directory)
    written(backup, "other", directory=directory)
    assert ended(update, "failed")
    assert text_of(backup) == "whole"
    assert list(backup.parent.iterdir()) == [backup]


@directories
def test_what_another_run_left_is_not_used(places: tuple[Path, Path], directory: bool) -> None:
    """It goes before the job is handed over, where the output is there; else it may be all that is left of it."""
    output, backup = places
    for left in (backup, backup.with_name("output.before-0")):
        written(left, "old", directory=directory)
    before_the_job(str(output), str(backup), "1")
    assert backup.exists()
    written(output, "new", directory=directory)
    update = before_the_job(str(output), str(backup), "1")
    assert not list(backup.parent.iterdir())
    start(update)
    assert text_of(output) == "new"


def test_a_copy_that_nobody_waits_for_goes(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is to end while a large file is copied."""
    output, backup = places
    written(output, "whole", directory=False)
    update, given_up = before_the_job(str(output), str(backup), "1"), threading.Event()
    monkeypatch.setattr(shutil, "copy2", lambda source, to: (shutil.copy(source, to), given_up.set()))
    prepare([update], given_up, again=False)
    assert given_up.is_set()
    assert not list(backup.parent.iterdir())


def test_what_was_not_there_before_goes(places: tuple[Path, Path]) -> None:
    """A file that the job makes: the next start does not go on with half of it, or with another run's."""
    output, backup = places
    update = before_the_job(str(output), str(backup), "1")
    start(update)
    written(output, "half", directory=False)
    start(update, again=True)
    assert not output.exists()


@directories
def test_one_that_was_stopped_is_undone(places: tuple[Path, Path], directory: bool) -> None:
    """Snakemake's main process does not ask for what was there before, and no copy stays."""
    output, backup = places
    written(output, "whole", directory=directory)
    update = before_the_job(str(output), str(backup), "1")
    start(update)
    written(output, "whole and half", directory=directory)
    written(backup, "other", directory=directory)
    (output.parent / "backups/output.before-1.part").touch()
    ended(update, "stopped")
    assert text_of(output) == "whole"
    assert not list(backup.parent.iterdir())


def test_a_link_to_what_is_updated_stays_one(places: tuple[Path, Path]) -> None:
    """Where a stopped job is undone."""
    output, backup = places
    behind = output.with_name("behind")
    behind.write_text("whole")
    output.symlink_to(behind)
    update = before_the_job(str(output), str(backup), "1")
    start(update)
    behind.write_text("half")
    ended(update, "stopped")
    assert output.is_symlink()
    assert behind.read_text() == "whole"


def test_what_a_stopped_one_has_made_goes(places: tuple[Path, Path]) -> None:
    """It was not there before, and the next run's job would go on with half of it. One that failed is Snakemake's."""
    output, backup = places
    update = before_the_job(str(output), str(backup), "1")
    start(update)
    written(output, "half", directory=False)
    assert ended(update, "failed")
    assert output.exists()
    ended(update, "stopped")
    assert not output.exists()


def test_a_copy_that_cannot_be_made_leaves_nothing(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it would keep a full disk full."""
    output, backup = places
    written(output, "whole", directory=False)
    update = before_the_job(str(output), str(backup), "1")

    def half(source: str, to: str) -> None:
        Path(to).write_text(Path(source).read_text()[:2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shutil, "copy2", half)
    with pytest.raises(OSError, match="full"):
        start(update)
    assert not list(backup.parent.iterdir())


def test_what_was_given_up_touches_nothing_more(places: tuple[Path, Path]) -> None:
    """By then Snakemake's main process may have put the former version where it takes it from."""
    output, backup = places
    written(output, "whole", directory=False)
    update, given_up = before_the_job(str(output), str(backup), "1"), threading.Event()
    start(update)
    ended(update, "failed")
    given_up.set()
    prepare([update], given_up, again=True)
    assert text_of(backup) == "whole"
