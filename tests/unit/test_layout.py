"""The layout: packages by concept, and imports between them in one direction only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from imported import imported

import snakemake_executor_plugin_dask

NAME = "snakemake_executor_plugin_dask"
ROOT = Path(snakemake_executor_plugin_dask.__file__).parent

#: What each package may import of the others; its own modules, it always may. docs/design.md says what each one is for.
MAY_IMPORT = {
    "model": set[str](),
    "node": {"model"},
    "injob": set[str](),
    "batch": {"model", "node"},
    "decide": {"model"},
    "settings": {"node"},
    "config": {"model", "node", "settings"},
    "interior": {"model", "node"},
    "observe": {"model", "node", "batch"},
    "worker.supervisor": {"model", "node"},
    "worker.warm": {"model", "node", "interior"},
    "worker": {"model", "node", "config", "interior", "worker.supervisor"},
    "backends": {"model", "node", "batch", "decide", "config", "interior"},
    "kept": {"model", "node", "batch"},
    "driver": {"model", "node", "batch", "decide", "config", "interior", "observe", "backends", "worker", "kept"},
    "frontend": {"model", "node", "batch", "decide", "settings", "config", "interior", "observe", "backends", "kept"},
    "cli": {
        "model",
        "node",
        "batch",
        "decide",
        "settings",
        "config",
        "observe",
        "backends",
        "kept",
        "frontend",
    },
    # What Snakemake's registry loads.
    "": {"settings", "frontend", "cli"},
}


def package_of(module: str) -> str:
    """The package of the table that holds a module, named from the plugin's own package on."""
    longest_first = sorted(MAY_IMPORT, key=len, reverse=True)
    return next((name for name in longest_first if f"{module}.".startswith(f"{name}.")), "")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module, named from the plugin's own package on, of all that a file imports of the plugin."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            if name.startswith(f"{NAME}."):
                yield node.lineno, name.removeprefix(f"{NAME}.")


@pytest.mark.parametrize("package", [pytest.param(name, id=name or "top") for name in MAY_IMPORT])
def test_imports_go_one_way(package: str) -> None:
    """A package imports only what the table allows it."""
    files = [
        path
        for path in ROOT.rglob("*.py")
        if package_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")) == package
    ]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for line, module in imports(path)
        if package_of(module) not in MAY_IMPORT[package] | {package}
    ]
    assert not wrong


def test_table_has_no_circle() -> None:
    """What a package may import, cannot import it, not by way of others either."""
    above: set[str] = set()
    remaining = dict(MAY_IMPORT)
    while remaining:
        free = [name for name, below in remaining.items() if below <= above]
        assert free, f"circle among {sorted(remaining)}"
        above.update(free)
        for name in free:
            del remaining[name]
