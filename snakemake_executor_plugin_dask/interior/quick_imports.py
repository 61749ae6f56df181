"""Imports of Snakemake and Dask that take less time than plain ones. Patches Python's import meanwhile.

For processes of one thread that have only begun. Left out is what such a process has no use for, and what Snakemake and
Dask do without where it is not installed. It can be imported afterwards, as it ever could.
"""

import contextlib
import gc
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from snakemake_executor_plugin_dask.interior import snakemake_records
from snakemake_executor_plugin_dask.interior.instead import Instead

#: What Dask takes larger buffers from, and what it shows its objects with in a notebook: a third of its import.
_NOT_FOR_DASK = ("numpy", "jinja2")


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python does not look for garbage: an import makes many objects, and hardly any."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def without(names: Iterable[str]) -> Iterator[None]:
    """As if these modules were not installed, but for those that are there already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def import_distributed(configuration: Mapping[str, Any] | None = None) -> None:
    """``configuration``: of Dask's, set before it is read.

    Where this fails, the next import says why; or it succeeds, with a version that cannot do without those modules.
    """
    if "distributed" in sys.modules:
        return
    with contextlib.suppress(ImportError), no_collection(), without(_NOT_FOR_DASK), _no_entry_points(), _quick_yaml():
        import dask

        if configuration is not None:
            dask.config.set(configuration)
        import distributed  # noqa: F401


@contextlib.contextmanager
def _no_entry_points() -> Iterator[None]:
    """Dask does not look through all installed packages for who can tell the size of some object."""
    # The one that Dask takes.
    name = "importlib.metadata" if sys.version_info >= (3, 12) else "importlib_metadata"
    with Instead(importlib.import_module(name), "entry_points", lambda **_: ()):
        yield


@contextlib.contextmanager
def _quick_yaml() -> Iterator[None]:
    """Dask reads its configuration with the parser that is written in C, where PyYAML has it."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with Instead(yaml, "safe_load", lambda stream: yaml.load(stream, loader)):  # noqa: S506 - it is as safe
        yield


def import_snakemake() -> None:
    """Its command line with all that this imports. Raises what that raises."""
    with no_collection(), listed_once():
        try:
            with snakemake_records.later():
                importlib.import_module("snakemake.cli")
        except Exception:  # noqa: BLE001 - a version to which this does not fit; or the next line says what is wrong
            importlib.import_module("snakemake.cli")


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """Snakemake lists all modules that are installed once for each kind of plugins; here it is the same list."""
    plain = pkgutil.iter_modules
    lists: dict[tuple[str, ...], tuple[pkgutil.ModuleInfo, ...]] = {}

    def iter_modules(path: Any = None, prefix: str = "") -> Iterator[pkgutil.ModuleInfo]:
        if path is not None or prefix:
            return plain(path, prefix)
        where = tuple(sys.path)
        if where not in lists:
            lists[where] = tuple(plain())
        return iter(lists[where])

    with Instead(pkgutil, "iter_modules", iter_modules):
        yield


@contextlib.contextmanager
def no_reporters() -> Iterator[None]:
    """Snakemake's command line is made without options of its reporters, for which it would import many modules.

    No job makes a report. Who asks for reporters afterwards gets them.
    """
    try:
        registries: Any = importlib.import_module("snakemake_interface_report_plugins.registry")
        registry_class = registries.ReportPluginRegistry
    except (ImportError, AttributeError):  # it takes longer
        yield
        return
    emptied: list[Any] = []

    def collect_nothing(registry: Any) -> None:
        emptied.append(registry)
        registry.plugins = {}

    with Instead(registry_class, "collect_plugins", collect_nothing):
        yield
    for registry in emptied:
        del registry.plugins  # made anew by the next call of the class
