"""Every public name says what it does not show by itself: contracts stand in the code, each in one place."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import snakemake_executor_plugin_dask

ROOT = Path(snakemake_executor_plugin_dask.__file__).parent

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


# Not when this module is imported, as each process of pytest does.
@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its path."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


@functools.cache
def classes() -> dict[str, ast.ClassDef]:
    """Every class of the package by its name."""
    return {node.name: node for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def public(body: list[ast.stmt], within: str) -> Iterator[tuple[str, Definition, ast.ClassDef | None]]:
    """The public names of a module or a class, in order, with the class that holds each. What functions hold is not."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from public(node.body, within)
        elif isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{within}.{node.name}", node, None
            if isinstance(node, ast.ClassDef):
                for name, inner, _ in public(node.body, f"{within}.{node.name}"):
                    yield name, inner, node


def said_by_a_base(cls: ast.ClassDef, name: str) -> bool:
    """Whether a class of this package, from which it inherits, documents the method: its contract stands there."""
    for base in cls.bases:
        above = classes().get(ast.unparse(base).rpartition(".")[2])
        if above is not None:
            methods = [node for node in above.body if isinstance(node, Definition) and node.name == name]
            if any(map(ast.get_docstring, methods)) or said_by_a_base(above, name):
                return True
    return False


def test_public_names_have_docstrings() -> None:
    """Classes, functions, methods and properties, unless a base class has the method's; modules, too."""
    found = [(path, *each) for path, tree in modules().items() for each in public(tree.body, path)]
    assert len(found) > 1000
    without = [
        name
        for _, name, node, cls in found
        if not ast.get_docstring(node) and not (cls is not None and said_by_a_base(cls, node.name))
    ]
    without += [path for path, tree in modules().items() if tree.body and not ast.get_docstring(tree)]
    assert not without
