"""What all tests share: which package is tested, and which tests stay together where several processes run them."""

import collections
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import snakemake_executor_plugin_dask

# How long an example takes says nothing on a machine that is busy with other tests.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where the built wheel is to be tested, refuse to test the sources beside the tests instead."""
    # A shell starts what runs in the background so: no Snakemake that a test starts would hear Ctrl-C, or Ctrl-\\.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    package = Path(snakemake_executor_plugin_dask.__file__).resolve().parent
    if os.environ.get("SNAKEMAKE_DASK_TEST_WHEEL") == "1" and package.parent == session.config.rootpath.resolve():
        msg = f"The tests are to run against the installed wheel, but import {package}; start them with ./run tests"
        raise pytest.UsageError(msg)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this Debian lacks the packages for, and keep those together that share a costly fixture."""
    without = dict(line.split(": ", 1) for line in os.environ.get("SNAKEMAKE_DASK_TESTS_WITHOUT", "").splitlines())
    for item in items:
        for marker, why in without.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=why))
        _keep_together(item)
    # What takes long goes first, and the many short ones fill what is left at the end.
    sizes = collections.Counter(map(_group, items))
    items.sort(key=lambda item: _when(item, sizes))


def _when(item: pytest.Item, sizes: collections.Counter[str | None]) -> tuple[int, int]:
    """Earlier for lower numbers: what waits for long, what shares something costly, all other systems, units.

    What waits is few: while as many processes wait as there are, nobody computes. The largest groups come first.
    """
    if item.get_closest_marker("long") is not None:
        return 0, 0
    group = _group(item)
    if group is not None:
        return 1, -sizes[group]
    return (3 if item.path.parent.name == "unit" else 2), 0


def _group(item: pytest.Item) -> str | None:
    """Of those that one process of pytest-xdist runs."""
    marker = item.get_closest_marker("xdist_group")
    return None if marker is None else str(marker.args[0])


def _keep_together(item: pytest.Item) -> None:
    """Keep those of a module that share a costly fixture, such as a batch system, in one process of pytest-xdist."""
    assert isinstance(item, pytest.Function)
    shared = [
        name
        for name, definitions in item._fixtureinfo.name2fixturedefs.items()  # noqa: SLF001 - pytest offers no other way
        if definitions[-1].scope in ("module", "session") and definitions[-1].baseid.startswith("tests")
    ]
    if shared and item.get_closest_marker("xdist_group") is None:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        which = "-".join(f"{name}{parameters.get(name, '')}" for name in shared)
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{which}"))
