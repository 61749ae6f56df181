"""How a private name of another package is declared: once, with what is lost where it is gone. Imports what it names.

The declaration is both what the check at the start looks for and what is used afterwards, so that neither can be
forgotten. A name that is gone is never passed over in silence: the check says so, or refuses the run, and a use that is
reached all the same raises `Gone`.
"""

import dis
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any

from snakemake_executor_plugin_dask.model.frozen import dataclass

#: The versions in which all of this was read.
READ_IN = {
    "snakemake": "9.27.1",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "dask_jobqueue": "0.9.0",
    "dask_cuda": "26.10.0",
}


class Gone(RuntimeError):
    """Another version of the package lacks a private name; the text says which, and what is lost."""


@dataclass(frozen=True, slots=True)
class Private:
    """One name. ``owner`` is a module, or a class in it as ``snakemake.dag:DAG``.

    ``lost`` completes "Without it, …". ``needed``: nothing stands in for it, and the run is refused; else the run
    goes on and says once what is lost. ``arguments``: those that a function is called with by name.
    """

    owner: str
    name: str
    lost: str
    needed: bool = True
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.owner.rpartition(':')[2]}.{self.name}"

    @property
    def package(self) -> str:
        """Whose it is: snakemake, distributed, tornado and so on."""
        return self.owner.partition(":")[0].partition(".")[0]

    def of(self, thing: Any) -> Any:
        """Its value in an object of the class, or in the module. Gone."""
        try:
            return getattr(thing, self.name)
        except AttributeError as error:
            raise Gone(refusal([self])) from error

    def there(self) -> bool:
        """Whether objects of the class have it, as far as the class tells."""
        try:
            owner = self._owner()
        except (ImportError, AttributeError):
            return False
        if not defines(owner, self.name):
            return False
        if not self.arguments:
            return True
        known = inspect.signature(getattr(owner, self.name)).parameters
        return set(self.arguments) <= set(known)

    def _owner(self) -> Any:
        module, _, path = self.owner.partition(":")
        owner: Any = importlib.import_module(module)
        for part in filter(None, path.split(".")):
            owner = getattr(owner, part)
        return owner


def privates(owner: str, lost: str, *names: str, needed: bool = True) -> tuple[Private, ...]:
    """Several names of one owner, without which the same is lost."""
    return tuple(Private(owner, name, lost, needed) for name in names)


def missing(names: Iterable[Private]) -> list[Private]:
    """Those that the installed packages lack."""
    return [name for name in names if not name.there()]


def refusal(lacking: Iterable[Private]) -> str:
    """Why a run cannot be started, in one sentence for each package."""
    return " ".join(
        f"{_installed(package)} lacks what the plugin cannot do without: {_each(names)}; install a version that it was "
        f"tried with, such as {_distribution(package)}=={READ_IN[package]}."
        for package, names in _by_package(lacking)
    )


def warning(lacking: Iterable[Private]) -> str:
    """What is lost in a run that goes on all the same, in one sentence for each package."""
    return " ".join(
        f"{_installed(package)} lacks {_each(names)}; the plugin was tried with {_distribution(package)} "
        f"{READ_IN[package]}."
        for package, names in _by_package(lacking)
    )


def untried(package: str) -> str:
    """A sentence where a later minor version is installed than any that the plugin was tried with; else empty."""
    try:
        found = version(_distribution(package))
    except PackageNotFoundError:
        return ""
    if _minor(found) <= _minor(READ_IN[package]):
        return ""
    known = ".".join(map(str, _minor(READ_IN[package])))
    return (
        f"{_installed(package).capitalize()} is newer than all that the plugin was tried with (up to {known}). What it "
        "relies on was looked for, and each worker tries out how deep jobs can start; a warning says what is lost, if "
        "anything."
    )


def _minor(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _each(names: Iterable[Private]) -> str:
    by_loss: dict[str, list[str]] = {}
    for name in names:
        by_loss.setdefault(name.lost, []).append(str(name))
    return ", and ".join(
        f"{', '.join(those)} (without {'it' if len(those) == 1 else 'them'}, {lost})" for lost, those in by_loss.items()
    )


def _by_package(names: Iterable[Private]) -> Iterator[tuple[str, list[Private]]]:
    found: dict[str, list[Private]] = {}
    for name in names:
        found.setdefault(name.package, []).append(name)
    yield from found.items()


def _distribution(package: str) -> str:
    return package.replace("_", "-")


def _installed(package: str) -> str:
    try:
        return f"{_distribution(package)} {version(_distribution(package))}"
    except PackageNotFoundError:
        return _distribution(package)


def defines(owner: Any, name: str) -> bool:
    """Whether a module or class has the name, or the objects of a class do: by a field, or set when one is made."""
    if hasattr(owner, name):
        return True
    if not isinstance(owner, type):
        return False
    return any(name in _annotated(cls) or name in _set_by(vars(cls).get("__init__")) for cls in owner.__mro__)


def _annotated(cls: type) -> Iterable[str]:
    """The fields that a class annotates.

    From Python 3.14 on annotations are evaluated when asked for, and name what is imported for type checkers alone.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format  # new in 3.14

        return inspect.get_annotations(cls, format=Format.FORWARDREF)
    else:
        return inspect.get_annotations(cls)


@functools.cache
def _set_by(function: object) -> frozenset[str]:
    """The attributes that a constructor sets."""
    if not isinstance(function, FunctionType):
        return frozenset()
    return frozenset(str(step.argval) for step in dis.get_instructions(function) if step.opname == "STORE_ATTR")
