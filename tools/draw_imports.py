"""Draws which file of vita_ref imports which, as a Mermaid diagram: python tools/draw_imports.py

It writes tools/imports.md from the code. A sub-package is one node. Arrows point downwards, to what is imported; dotted
ones are imports inside a function, made only if the function is called.

Test: ``pytest tests/tools/test_draw_imports.py``
"""

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vita_ref"
OUT = ROOT / "tools" / "imports.md"
HEAD = """# Who imports whom

Written by `python tools/draw_imports.py` from the code. `tests/test_imports.py` holds the rules: arrows run downwards, without a
cycle. Dotted arrows are imports inside a function, made only if it is called. Boxes are sub-packages.

"""


def node_of(file):
    """The name of the node that a file belongs to: its sub-package, or itself."""
    parts = file.relative_to(PACKAGE).parts
    return f"{parts[0]}/" if len(parts) > 1 else file.stem


def imported_nodes(statement, file, nodes):
    """The nodes of the package that an import statement of a file names."""
    if not isinstance(statement, ast.ImportFrom) or not statement.level:
        return set()
    inside = len(file.relative_to(PACKAGE).parts) - statement.level  # folders left below vita_ref
    if inside > 0:
        return set()  # from the file's own sub-package
    names = [statement.module.split(".")[0]] if statement.module else [alias.name for alias in statement.names]
    return {name if name in nodes else f"{name}/" for name in names} & nodes


def read_edges():
    """(importing node, imported node) -> whether some import of it is at the top of a file."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]
    nodes, edges = {node_of(file) for file in files}, {}
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for statement in ast.walk(tree):
            for name in imported_nodes(statement, file, nodes) - {node_of(file)}:
                edge = node_of(file), name
                edges[edge] = edges.get(edge, False) or statement in tree.body
    return edges


def draw(edges):
    """The diagram as Markdown. What follows from other arrows is drawn too: it is what the code says."""
    lines = ["```mermaid", "flowchart TD"]
    for name in sorted({name for edge in edges for name in edge}):
        lines.append(f'    {name.strip("/")}["{name}"]' if name.endswith("/") else f"    {name}([{name}.py])")
    for (start, end), top in sorted(edges.items()):
        lines.append(f"    {start.strip('/')} {'-->' if top else '-.->'} {end.strip('/')}")
    return HEAD + "\n".join([*lines, "```"]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    OUT.write_text(draw(read_edges()), encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {len(read_edges())} arrows")
