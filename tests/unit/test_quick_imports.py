"""Imports that take less time: what is left out of them can be had afterwards, and nothing else is changed."""

import gc
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_dask.interior import quick_imports


def fresh(code: str) -> list[str]:
    """The lines that a new process prints."""
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def test_dask_is_imported_without_what_it_has_no_use_for_here() -> None:
    """What it leaves out is there for who imports it afterwards, such as a dashboard."""
    code = """
import sys
from pathlib import Path
from snakemake_executor_plugin_dask.interior.quick_imports import import_distributed
import_distributed({"distributed.comm.offload": False})
import distributed.comm.utils
print(*(name in sys.modules for name in ("distributed.scheduler", "distributed.worker", "numpy", "jinja2")))
print(distributed.comm.utils.OFFLOAD_THRESHOLD)
import numpy, jinja2
import importlib.metadata
print(numpy.zeros(2).sum(), jinja2.Template("{{ 1 + 1 }}").render(), len(importlib.metadata.entry_points()) > 0)
"""
    assert fresh(code) == ["True True False False", "False", "0.0 2 True"]


def test_dask_that_needs_what_was_left_out_is_imported_by_the_next_who_needs_it() -> None:
    """Here because a module that it imports cannot do without."""
    code = """
import sys
from pathlib import Path
from snakemake_executor_plugin_dask.interior import quick_imports
quick_imports._NOT_FOR_DASK += ("tornado",)
quick_imports.import_distributed()
print("distributed" in sys.modules)
import distributed
print(distributed.Client.__name__)
"""
    assert fresh(code) == ["False", "Client"]


def test_what_is_there_already_stays() -> None:
    module = sys.modules["os"]
    with quick_imports.without(["os", "no_such_module"]):
        import os as found

        assert found is module
        with pytest.raises(ImportError):
            __import__("no_such_module")
    assert "no_such_module" not in sys.modules


def test_garbage_is_collected_again() -> None:
    """Unless it was not before."""
    with quick_imports.no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with quick_imports.no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_installed_modules_are_listed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As long as they are looked for in the same places; a list of one place is made as ever."""
    plain = pkgutil.iter_modules
    made = []

    def counted(*arguments: object) -> object:
        made.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(pkgutil, "iter_modules", counted)
    expected = list(plain())
    with quick_imports.listed_once():
        assert list(pkgutil.iter_modules()) == list(pkgutil.iter_modules()) == expected
        assert len(made) == 1
        (tmp_path / "one_more.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        assert "one_more" in {module.name for module in pkgutil.iter_modules()}
        assert [module.name for module in pkgutil.iter_modules([os.fspath(tmp_path)], "a.")] == ["a.one_more"]
    assert pkgutil.iter_modules is counted


def test_a_command_line_without_reporters_leaves_them_to_who_asks() -> None:
    code = """
import sys
from snakemake_executor_plugin_dask.interior import quick_imports
quick_imports.import_snakemake()
import snakemake.cli
with quick_imports.no_reporters():
    parser, arguments = snakemake.cli.parse_args(["--cores", "1"])
print("snakemake.report" in sys.modules, arguments.reporter)
from snakemake_interface_report_plugins.registry import ReportPluginRegistry
print(ReportPluginRegistry().get_registered_plugins())
"""
    assert fresh(code) == ["False None", "['html']"]


def test_snakemake_is_imported_without_what_its_records_are_made_with() -> None:
    """A record has them imported, and is the real one then; without Pydantic's plugins, which the next class takes."""
    code = """
import os, sys
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "mine"
from snakemake_executor_plugin_dask.interior import quick_imports
quick_imports.import_snakemake()
libraries = ("sqlmodel", "sqlalchemy", "pydantic")
print(*(name in sys.modules for name in ("snakemake.workflow", *libraries)))
import snakemake.persistence as persistence, snakemake.persistence.file as file
print(file.MetadataRecord.model_validate({"rule": "a"}).rule, *(name in sys.modules for name in libraries))
print(file.MetadataRecord is persistence.MetadataRecord, isinstance(file.MetadataRecord(), persistence.MetadataRecord))
from pydantic.plugin import _loader
print(os.environ["PYDANTIC_DISABLE_PLUGINS"], _loader._plugins)
"""
    assert fresh(code) == ["True False False False", "a True True True", "True True", "mine None"]


@pytest.mark.parametrize(
    "found",
    [
        "snakemake.workflow.DbPersistence",
        "snakemake.persistence.db.DbPersistence",
    ],
)
def test_records_in_a_database_are_those_of_snakemake(found: str, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from snakemake_executor_plugin_dask.interior import quick_imports
quick_imports.import_snakemake()
import snakemake.persistence.db, snakemake.workflow
kept = {found}(dag=None, path=Path({str(tmp_path)!r}), db_url='sqlite://')
import snakemake.persistence.db as database
print(type(kept) is database.DbPersistence is snakemake.workflow.DbPersistence, Path(database.__file__).name)
print(isinstance(kept, snakemake.persistence.PersistenceBase))
print(issubclass(database.MetadataRecordORM, snakemake.persistence.MetadataRecord))
"""
    assert fresh(code) == ["True db.py", "True", "True"]


def test_a_snakemake_that_needs_more_is_imported_as_ever() -> None:
    """Here because one of its modules asks a library for what the stand-in has not."""
    code = """
import sys
from snakemake_executor_plugin_dask.interior import quick_imports, snakemake_records
plain = snakemake_records._module
snakemake_records._module = lambda name, **contents: plain(name)
quick_imports.import_snakemake()
import snakemake.cli, sqlmodel, snakemake.persistence.db
print(issubclass(snakemake.persistence.MetadataRecord, sqlmodel.SQLModel), snakemake.persistence.db.__name__)
"""
    assert fresh(code) == ["True snakemake.persistence.db"]


def test_a_workflow_gets_the_libraries_that_it_imports_itself() -> None:
    code = """
from snakemake_executor_plugin_dask.interior import quick_imports
quick_imports.import_snakemake()
import sqlalchemy, sqlmodel
from snakemake.persistence import MetadataRecord
print(sqlalchemy.text("1").text, issubclass(sqlmodel.SQLModel, sqlmodel.main.BaseModel), MetadataRecord(rule="a").rule)
"""
    assert fresh(code) == ["1 True a"]
