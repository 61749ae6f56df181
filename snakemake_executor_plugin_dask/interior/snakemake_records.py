"""Snakemake imported without the database libraries that its records of outputs are made with. Patches `sys.modules`.

SQLModel, with SQLAlchemy and Pydantic, is more than half of what Snakemake imports, and hardly any job needs a record:
the main process writes them. Two classes stand in for the real ones until something is done with them. Read in
Snakemake 9.27.1. A version to which this does not fit raises ImportError or TypeError, and can be imported afterwards.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_RECORDS, _RECORD = "snakemake.persistence", "MetadataRecord"
_DATABASE, _IN_DATABASE = "snakemake.persistence.db", "DbPersistence"
_loading = threading.RLock()


class _Later(type):
    """Of a class that stands in for another one, which is made when it is needed."""

    def __new__(cls, name: str, bases: tuple[type, ...], contents: dict[str, Any], **_: Any) -> "_Later":
        return super().__new__(cls, name, bases, contents)

    def __init__(cls, *arguments: Any, **_: Any) -> None:
        super().__init__(*arguments)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return _real(cls)(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        return getattr(_real(cls), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real(cls))


class _Database(ModuleType):
    """Stands in for the module with the class that keeps records in a database."""

    def __init__(self) -> None:
        super().__init__(_DATABASE)
        setattr(self, _IN_DATABASE, _Later(_IN_DATABASE, (), {"__module__": _DATABASE}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_database(), name)


@contextlib.contextmanager
def later() -> Iterator[None]:
    """For Snakemake's first import."""
    stand_ins = {
        "sqlmodel": _module("sqlmodel", SQLModel=_Later("SQLModel", (), {}), Field=_nothing),
        "sqlalchemy": _module("sqlalchemy", Column=_nothing, JSON=None),
        _DATABASE: _Database(),
    }
    known = set(sys.modules)
    if known & {_RECORDS, *stand_ins}:
        yield
        return
    sys.modules.update(stand_ins)
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - known:
            if name.partition(".")[0] == "snakemake":
                del sys.modules[name]
        raise
    finally:
        database = stand_ins.pop(_DATABASE)
        for name in stand_ins:
            del sys.modules[name]
        if _stands_in():
            vars(sys.modules[_RECORDS])["db"] = database  # as an import leaves it there
        else:
            del sys.modules[_DATABASE]


def load() -> None:
    """Have the real classes, with the libraries, where Snakemake was imported without."""
    with _loading:
        if not _stands_in():
            return
        records = sys.modules[_RECORDS]
        spec = records.__spec__
        assert spec is not None
        assert spec.loader is not None
        again = importlib.util.module_from_spec(spec)
        with _no_pydantic_plugins():
            spec.loader.exec_module(again)
        _replace(getattr(records, _RECORD), getattr(again, _RECORD))


@contextlib.contextmanager
def _no_pydantic_plugins() -> Iterator[None]:
    """Pydantic does not look through all installed packages for plugins of its own; the next class has it look."""
    name = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(name)
    os.environ[name] = "__all__"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _database() -> ModuleType:
    """The real module; where there is no such, ImportError."""
    with _loading:
        load()
        stand_in = sys.modules[_DATABASE]
        if isinstance(stand_in, _Database):
            del sys.modules[_DATABASE]
            real = importlib.import_module(_DATABASE)
            _replace(vars(stand_in)[_IN_DATABASE], getattr(real, _IN_DATABASE))
        return sys.modules[_DATABASE]


def _real(stand_in: type) -> Any:
    if stand_in.__module__ == _DATABASE:
        return getattr(_database(), stand_in.__name__)
    load()
    return getattr(sys.modules[_RECORDS], stand_in.__name__)


def _replace(stand_in: type, real: type) -> None:
    """Wherever a module of Snakemake's has it under its own name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("snakemake.") and vars(module).get(stand_in.__name__) is stand_in:
            setattr(module, stand_in.__name__, real)


def _stands_in() -> bool:
    return isinstance(getattr(sys.modules.get(_RECORDS), _RECORD, None), _Later)


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _nothing(*_: Any, **__: Any) -> None:
    """What a class that stands in is made of."""
