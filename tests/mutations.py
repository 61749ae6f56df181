"""Another Snakemake: the installed one with some of its names changed, for processes that a test starts.

``PYTHONPATH=changed(directory, Change("_jobid"))`` before a Python makes it import Snakemake with `_jobid` named
`_jobid_renamed` wherever the word stands: as in a version that has renamed it, and works. Nothing is copied, and
modules without the word are taken from their bytecode.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

_SITE = """
import importlib.machinery
import json
import re
import sys
from pathlib import Path

CHANGES = json.loads(Path(__file__).with_name("changes.json").read_text())


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        source = before = self.get_source(name)
        for change in CHANGES:
            if re.fullmatch(change["modules"], name):
                source = re.sub(change["pattern"], change["replacement"], source)
        return super().get_code(name) if source == before else self.source_to_code(source, self.path)


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if not any(re.fullmatch(change["modules"], name) for change in CHANGES):
            return None
        spec = super().find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder)
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One name, and where it is changed; ``pattern`` and ``replacement`` where it is more than a word."""

    name: str
    modules: str = r"snakemake(\..*)?"  # a regular expression of modules' whole names
    pattern: str = ""
    replacement: str = ""


def changed(directory: Path, *changes: Change) -> str:
    """Write what makes a Python change names into the directory; returns what `PYTHONPATH` has to begin with."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(_SITE)
    complete = [
        {
            **asdict(change),
            "pattern": change.pattern or rf"\b{re.escape(change.name)}\b",
            "replacement": change.replacement or f"{change.name}_renamed",
        }
        for change in changes
    ]
    (directory / "changes.json").write_text(json.dumps(complete))
    return str(directory)


def field(holder: str, name: str, argument: str = "") -> tuple[Change, ...]:
    """A field of one of Snakemake's classes of settings, whose name is also that of other things."""
    given = rf"\b{name}(?==args\.{argument or name}\b)"
    return (
        Change(name, pattern=rf"(?<={holder}\.){name}\b|{given}", replacement=rf"{name}_renamed"),
        Change(name, r"snakemake\.settings\.types", rf"(?m)^    {name}(?=:)", rf"    {name}_renamed"),
        Change(name, r"snakemake\.settings\.types", rf"(?<=self\.){name}\b", rf"{name}_renamed"),
    )


def attribute(name: str, of: str, module: str) -> tuple[Change, ...]:
    """An attribute that other classes have, too: where the object goes by the name ``of``, and in its own module."""
    return (
        Change(name, pattern=rf"(?<=\b{of}\.){name}\b", replacement=f"{name}_renamed"),
        Change(name, module, rf"(?<=self\.){name}\b|(?<=def ){name}(?=\(self)", f"{name}_renamed"),
    )


def where(name: str, *patterns: str, modules: str = r"snakemake(\..*)?") -> tuple[Change, ...]:
    """A name that is changed where one of the patterns fits."""
    return (Change(name, modules, "|".join(patterns), f"{name}_renamed"),)
