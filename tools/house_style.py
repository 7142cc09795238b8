"""Measures the lengths and the style of a checkout's code; tools/house.py prints the results and enforces limits.

Most functions take the root folder of a checkout and list the places that break a rule, as `path:line name`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.source_tree import Function, Module, assigned, functions, imports, nodes, package, references, told

ENTRY_POINTS = {"main", "parse"}
"""The functions of commands and tools that are called from outside; every command may have its own."""
LONGEST_FILE, LONGEST_README = 300, 150
LONGEST_FUNCTION, MEDIAN_FUNCTION = 60, 12
LONGEST_HELPER, MOST_HELPERS = 6, 39
UNOBSERVED = re.compile(r"(labels?|truth)\b[^#\n]*(==|!=|>=|<=|=) *-1\b")
"""A label of -1 is written UNOBSERVED outside raypaml/labels.py; other literals -1 are axes, slices and exponents."""


def function_lengths(root: Path) -> list[tuple[int, str]]:
    """Lists the length of every function's body, including its docstring, with its place."""
    return sorted(
        ((n.end_lineno or 0) - n.body[0].lineno + 1, f"{m.path}:{n.lineno} {n.name}") for m, n in functions(root)
    )


def long_functions(root: Path) -> list[str]:
    """Lists the functions that are too long."""
    return [f"{place}: {lines} lines" for lines, place in function_lengths(root) if lines > LONGEST_FUNCTION]


def typical_function(root: Path, share: float) -> int:
    """Returns the quantile `share` of the lengths of all functions."""
    lengths = [lines for lines, _ in function_lengths(root)] or [0]
    return lengths[int(share * (len(lengths) - 1))]


def typical_function_too_long(root: Path) -> list[str]:
    """Says whether the median function is too long."""
    median = typical_function(root, 0.5)
    return [f"raypaml/ and tools/: the median function has {median} lines"] if median > MEDIAN_FUNCTION else []


def long_files(files: Iterable[Module], limit: int = LONGEST_FILE) -> list[str]:
    """Lists the files that are longer than a limit."""
    lines = ((module.path, len(module.text.splitlines())) for module in files)
    return [f"{path}:{limit + 1} the file has {count} lines" for path, count in lines if count > limit]


def readme_lines(root: Path) -> int:
    """Counts the lines of README.md; a missing one has none."""
    path = root / "README.md"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def long_readme(root: Path) -> list[str]:
    """Says whether README.md is too long."""
    lines = readme_lines(root)
    return [f"README.md:{LONGEST_README + 1} the file has {lines} lines"] if lines > LONGEST_README else []


def unobserved_literals(root: Path) -> list[str]:
    """Lists the lines where a literal -1 stands for an unobserved label."""
    lines = ((m.path, *line) for m in package(root) for line in enumerate(m.text.splitlines(), 1))
    return [f"{p}:{n} {t.strip()}" for p, n, t in lines if UNOBSERVED.search(t) and p != "raypaml/labels.py"]


def helpers_called_once(root: Path) -> list[str]:
    """Lists the helpers of raypaml/ that their own module calls in exactly one place.

    A helper is a function or method of a few lines whose name begins with an underscore, so that only its module uses
    it. It could be inlined, and is worth its name only if the name says an idea. Reading a property counts as a call.
    Not listed, because they cannot be inlined: functions that are passed on as values, such as those in tables, those
    that keep their result between calls (`cache`), and methods that override one of a library.
    """
    calls = {module: Counter(map(_called, module.nodes)) for module in package(root)}
    uses = {module: Counter(map(_named, module.nodes)) for module in package(root)}
    private = ((m, node, ast.unparse(node).partition("def ")[0]) for m, node in _short_functions(root, "_"))
    return [
        f"{m.path}:{node.lineno} {node.name}"
        for m, node, decorators in private
        if uses[m][node.name] == 1 and (calls[m][node.name] or "property" in decorators) and "cache" not in decorators
    ]


def one_caller_functions(root: Path) -> list[str]:
    """Lists the short functions and methods of raypaml/ whose name exactly one other function or module uses.

    Uses in raypaml/ and tools/ count, those in tests do not. Only names are compared, so a method with a common name is
    never listed. A reader must tell which of these could be inlined; these could not: functions that a table holds as
    values, methods of a protocol or of a public class, and functions that are the interface of their module.
    """
    sites, lines = references(root), []
    for module, node in _short_functions(root):
        users = sites.get(node.name, set()) - {place := f"{module.path}:{node.lineno}"}
        lines += [f"{place} {node.name}, used by {next(iter(users))}"] if len(users) == 1 else []
    return lines


def _short_functions(root: Path, start: str = "") -> Iterator[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields the short functions and methods of raypaml/, without nested ones, entry points and special methods."""
    for module, parent in nodes(package(root)):
        for node in parent.body if isinstance(parent, ast.Module | ast.ClassDef) else []:
            if isinstance(node, Function) and node.name not in ENTRY_POINTS and not node.name.startswith("__"):
                is_short = (node.end_lineno or 0) - node.lineno < LONGEST_HELPER
                yield from [(module, node)] if is_short and node.name.startswith(start) else []


def _named(node: ast.AST) -> str:
    """Returns the name that a place uses, alone or as an attribute; empty where it uses none."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ""


def _called(node: ast.AST) -> str:
    """Returns the name that a call calls; empty for anything else, and for `super().NAME()`, another method."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func).startswith("super("):
        return ""
    return _named(node.func)


def uses_of_any(root: Path) -> list[str]:
    """Lists the uses of `Any` in raypaml/."""
    uses = ((m, node) for m, node in nodes(package(root)) if isinstance(node, ast.Name) and node.id == "Any")
    return [f"{module.path}:{node.lineno} Any" for module, node in uses]


def results_named_found(root: Path) -> list[str]:
    """Lists the assignments in raypaml/ to a variable `found`, which does not say what it holds."""
    statements = ((m, node) for m, node in nodes(package(root)) if isinstance(node, ast.stmt))
    return [f"{module.path}:{node.lineno} found" for module, node in statements if "found" in assigned(node)]


def docstrings_with_of(root: Path) -> list[str]:
    """Lists the docstrings in raypaml/, those of fields too, that begin with `Of`."""
    statements = ((m, node) for m, node in nodes(package(root)) if isinstance(node, ast.Expr))
    texts = ((m, node.value) for m, node in statements if isinstance(node.value, ast.Constant))
    return [f"{m.path}:{t.lineno} {t.value!s}" for m, t in texts if re.match(r"\s*Of\b", str(t.value))]


def lazy_imports(root: Path) -> list[str]:
    """Lists the imports inside functions of raypaml/."""
    return told(edge for edge in imports(root) if edge.lazy and not edge.module.is_tool)
