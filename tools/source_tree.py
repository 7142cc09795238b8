"""Reads the modules of a checkout, what they import and what they define, without executing anything.

A module that is named in a string and imported by that name (`importlib`) is not seen.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

FOLDERS = ("raypaml", "tools")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Module:
    """One source file of the checkout."""

    path: str
    """The path is relative to the root of the checkout."""
    name: str
    """The dotted name; a package, which is the file __init__.py, is named like its folder."""
    text: str
    tree: ast.Module

    @property
    def is_tool(self) -> bool:
        """Says whether the file lies under tools/."""
        return self.path.startswith("tools/")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Lists every syntax node of the module."""
        return list(ast.walk(self.tree))


@dataclass(frozen=True)
class Import:
    """One imported name and the place that imports it."""

    module: Module
    line: int
    name: str
    """The dotted name that is imported, such as `raypaml.labels.Vocabulary`."""
    target: str
    """The module of the checkout that holds the name; empty where the name comes from elsewhere."""
    lazy: bool
    """The import is inside a function."""
    types: bool
    """The import is under TYPE_CHECKING and so never runs."""

    def __str__(self) -> str:
        return f"{self.module.path}:{self.line} {self.module.name} imports {self.target or self.name}"


@cache
def modules(root: Path) -> tuple[Module, ...]:
    """Reads every module under raypaml/ and tools/, once per process."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return tuple(_module(path, path.relative_to(root)) for path in paths)


def _module(path: Path, place: Path) -> Module:
    """Reads one module, which lies at a place relative to the root."""
    text = path.read_text(encoding="utf-8")
    parts = place.parent.parts if place.name == "__init__.py" else place.with_suffix("").parts
    return Module(place.as_posix(), ".".join(parts), text, ast.parse(text, place.as_posix()))


def package(root: Path) -> list[Module]:
    """Returns the modules under raypaml/, without the tools."""
    return [module for module in modules(root) if not module.is_tool]


@cache
def imports(root: Path) -> tuple[Import, ...]:
    """Lists every import of every module."""
    names = {module.name for module in modules(root)}
    return tuple(
        Import(module, line, name, _target(name, module, names), lazy, types)
        for module in modules(root)
        for line, name, lazy, types in _imported(module, module.tree)
    )


def told(edges: Iterable[Import]) -> list[str]:
    """Describes imports; a statement that imports several names of one module is described once."""
    return list({(edge.module.path, edge.line, edge.target): str(edge) for edge in edges}.values())


def _imported(
    module: Module, node: ast.AST, lazy: bool = False, types: bool = False
) -> Iterator[tuple[int, str, bool, bool]]:
    """Yields line, name, whether inside a function and whether under TYPE_CHECKING, of all imports under a node."""
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name, lazy, types) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.lineno, f"{_base(node, module)}.{alias.name}", lazy, types) for alias in node.names)
    guarded = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _imported(module, child, lazy or isinstance(node, Function), types or child in guarded)


def _base(node: ast.ImportFrom, module: Module) -> str:
    """Returns the absolute name of the module in `from MODULE import ...`, which may be relative."""
    if not node.level:
        return node.module or ""
    up = node.level - module.path.endswith("/__init__.py")
    parts = module.name.split(".")
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _target(name: str, module: Module, names: set[str]) -> str:
    """Returns the module of the checkout that holds a name; tools may import others of their folder by bare names."""
    folder = module.name.split(".")[:-1] if module.is_tool else []
    for above in [folder, []]:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            holder = ".".join([*above, *parts[:end]])
            if holder in names:
                return holder
    return ""


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns every circle of a graph as its sorted nodes (Tarjan, 1972); a single node is no circle."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for after in sorted(graph.get(node, ())):
            if after not in order:
                visit(after)
            if after in stack:
                low[node] = min(low[node], low[after])
        if low[node] == order[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            circles.extend([sorted(circle)] if len(circle) > 1 else [])

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return circles


def nodes(files: Iterable[Module]) -> Iterator[tuple[Module, ast.AST]]:
    """Yields every syntax node of every module."""
    return ((module, node) for module in files for node in module.nodes)


def functions(root: Path) -> list[tuple[Module, Function]]:
    """Lists every function and method, nested ones too."""
    return [(module, node) for module, node in nodes(modules(root)) if isinstance(node, Function)]


def defined(module: Module, *, constants: bool = True) -> Iterator[tuple[int, str]]:
    """Yields line and name of what a module defines at its top level."""
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        elif constants:
            yield from ((node.lineno, name) for name in assigned(node))


def assigned(node: ast.AST) -> list[str]:
    """Lists the names that an assignment binds; any other node binds none."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    parts = (part for target in targets for part in ast.walk(target))
    return [part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def references(root: Path) -> dict[str, set[str]]:
    """Maps every name that is used to the sites that use it: `path:line` of a function, or the path of a module."""
    sites = defaultdict[str, set[str]](set)
    for module in modules(root):
        _note_references(module, module.tree, module.path, sites)
    return sites


def _note_references(module: Module, node: ast.AST, site: str, sites: dict[str, set[str]]) -> None:
    """Notes the names that are used under a node, each at the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load):
            sites[child.id].add(site)
        elif isinstance(child, ast.Attribute):
            sites[child.attr].add(site)
        inner = f"{module.path}:{child.lineno}" if isinstance(child, Function) else site
        _note_references(module, child, inner, sites)
