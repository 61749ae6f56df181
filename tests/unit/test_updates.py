"""What a job updates is as it was before, where an attempt was killed; what another run left has no part in it."""

from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.node.updates import before_the_job, put_back


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


@pytest.mark.parametrize("directory", [False, True])
def test_a_killed_attempt_is_undone(tmp_path: Path, directory: bool) -> None:
    """From the backup that its Snakemake has made."""
    output, backup = tmp_path / "output", tmp_path / "backups" / "output"
    written(output, "whole", directory=directory)
    update = before_the_job(str(output), str(backup))
    written(backup, "whole", directory=directory)
    written(output, "whole and half", directory=directory)
    put_back(update)
    assert text_of(output) == "whole"
    assert not backup.exists()


@pytest.mark.parametrize("directory", [False, True])
def test_a_backup_that_another_run_left_is_not_used(tmp_path: Path, directory: bool) -> None:
    """It goes before the job is handed over; an attempt that was killed before it began has left none."""
    output, backup = tmp_path / "output", tmp_path / "backups" / "output"
    written(output, "new", directory=directory)
    written(backup, "old", directory=directory)
    update = before_the_job(str(output), str(backup))
    assert not backup.exists()
    put_back(update)
    assert text_of(output) == "new"


@pytest.mark.parametrize("directory", [False, True])
def test_a_backup_that_was_cut_short_is_not_used(tmp_path: Path, directory: bool) -> None:
    """The attempt was killed while the copy was made: the output is whole, and the copy is in nobody's way."""
    output, backup = tmp_path / "output", tmp_path / "backups" / "output"
    written(output, "whole", directory=directory)
    update = before_the_job(str(output), str(backup))
    written(backup, "wh", directory=directory)
    put_back(update)
    assert text_of(output) == "whole"
    assert not backup.exists()


def test_what_was_not_there_before_goes(tmp_path: Path) -> None:
    """A file that the job makes: the next attempt does not go on with half of it, or with another run's."""
    output, backup = tmp_path / "output", tmp_path / "backups" / "output"
    written(backup, "old", directory=False)
    update = before_the_job(str(output), str(backup))
    written(output, "half", directory=False)
    put_back(update)
    assert not output.exists()
