"""Objects that refer to each other are forgotten at the latest when no job is there, or after an hour."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from snakemake_executor_plugin_dask.driver.own.garbage import Garbage


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As it was before."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


class Round:
    """It refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_left_of_jobs_goes_with_the_last_of_them() -> None:
    """While jobs are there, old objects are not looked at; a later job's are again."""
    garbage = Garbage(lambda: 0.0)
    for _ in range(2):
        found = weakref.ref(kept := Round())
        garbage.look(jobs=True)
        del kept
        gc.collect()
        garbage.look(jobs=True)
        assert found() is not None
        garbage.look(jobs=False)
        assert found() is None


def test_where_jobs_never_end_all_is_looked_at_each_hour() -> None:
    """Also what was old long ago."""
    now = 0.0
    garbage = Garbage(lambda: now)
    for hour in range(2):
        found = weakref.ref(kept := Round())
        garbage.look(jobs=True)
        del kept
        now = hour * 3600.0 + 3599.0
        garbage.look(jobs=True)
        assert found() is not None
        now += 1.0
        garbage.look(jobs=True)
        assert found() is None
