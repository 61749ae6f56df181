"""What Python's sources import, for tests that hold the layout."""

import ast


def imported(node: ast.AST) -> list[str]:
    """The full names that an import statement brings in; none: it is something else, or relative."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []
