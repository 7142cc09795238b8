"""Measures the code of a checkout, prints one table, and exits with code 1 if a limit is broken.

    python -m tools.house                      # part of `make check`
    python -m tools.house --offenders helpers  # lists the places that one row of the table counts

A row with a limit is enforced: everything that breaks it is named as `path:line name`. A row without one is only
printed. Every measure is a function of the root folder of a checkout, so that tests can feed it small trees.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.house_style import (
    ENTRY_POINTS,
    LONGEST_FILE,
    LONGEST_FUNCTION,
    LONGEST_HELPER,
    LONGEST_README,
    MEDIAN_FUNCTION,
    MOST_HELPERS,
    docstrings_with_of,
    helpers_called_once,
    lazy_imports,
    long_files,
    long_functions,
    long_readme,
    one_caller_functions,
    readme_lines,
    results_named_found,
    typical_function,
    typical_function_too_long,
    unobserved_literals,
    uses_of_any,
)
from tools.source_tree import Import, Module, defined, functions, imports, modules, package, strongly_connected, told

ROOT = Path(__file__).parent.parent

ORDER = (
    ("tools",),
    ("commands", "package"),
    ("api",),
    ("cluster",),
    ("search", "auditing", "inference", "run_report"),
    ("training",),
    ("explanations",),
    ("evaluation",),
    ("reports",),
    ("outputs",),
    ("runs",),
    ("recipes",),
    ("config",),
    ("settings",),
    ("preparation",),
    ("augmentation",),
    ("data", "model", "losses", "metrics"),
    (
        *("labels", "files", "sealed", "sealed_tables", "stored_json", "json_types", "bounded", "mapper", "cli"),
        *("extensions", "names", "spreadsheets", "share", "collectives", "counting", "credentials", "errors"),
        *("writable", "fields", "bounds", "log_lines"),
    ),
)
"""The rooms from the top down, as in raypaml/README.md. Rooms of one row may import each other one way."""

APART = {"data", "model", "losses", "metrics"}
"""These rooms never import each other."""

COMMANDS = {"train", "tune", "evaluate", "explain", "predict", "export", "audit", "doctor", "aggregate", "report"}
COMMANDS |= {"shard", "__main__"}
"""The modules of the room `commands`. The room `package` is raypaml/__init__.py; any other module is its own room."""

NO_TORCH = {
    *("labels", "config", "settings", "recipes", "cli", "counting", "credentials", "errors"),
    *("extensions", "files", "bounded", "json_types", "stored_json", "mapper", "names", "spreadsheets"),
    *("fields", "bounds", "log_lines", "writable", "outputs", "metrics", "preparation", "data"),
    "losses.schemes",
    "augmentation.augmentations",
    "augmentation.draws",
}
NO_TORCH |= {f"evaluation.{name}" for name in ("parts", "entries", "foreign", "measures", "aggregation", "summary")}
TORCH_ALLOWED = {"data.batches"}
"""Rooms and modules in NO_TORCH import neither torch nor what is built on it at module level; these modules may."""

TORCH = {"torch", "torchvision", "timm"}
METRICS_NEED = {"numpy", "scipy", "raypaml"} | sys.stdlib_module_names
LONGEST_COMMAND = 100


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    about: str
    offenders: list[str]
    limit: str = ""
    """The limit as it is printed; empty where the measure is not enforced."""
    figure: str = ""
    """The figure as it is printed; empty where it is the number of offenders."""
    allowed: int = 0
    """The number of offenders up to which the limit is kept."""

    @property
    def is_broken(self) -> bool:
        """Whether the measure is enforced and has more offenders than are allowed."""
        return bool(self.limit) and len(self.offenders) > self.allowed


def room(name: str) -> str:
    """Returns the room of a module, which is named with dots."""
    parts = name.split(".")
    if parts[0] != "raypaml" or len(parts) == 1:
        return "package" if parts == ["raypaml"] else "tools"
    return "commands" if parts[1] in COMMANDS else parts[1]


def _circles(edges: Iterable[Import], place: Callable[[str], str]) -> list[str]:
    """Describes the circles between places (modules or rooms): who is in it and one import for each step."""
    steps: dict[tuple[str, str], Import] = {}
    graph = defaultdict[str, set[str]](set)
    for edge in edges:
        here, there = place(edge.module.name), place(edge.target or edge.module.name)
        if here != there:
            steps.setdefault((here, there), edge)
            graph[here].add(there)
    return [
        "\n    ".join([" <-> ".join(circle), *(str(steps[step]) for step in steps if {*step} <= {*circle})])
        for circle in strongly_connected(graph)
    ]


def module_circles(root: Path, *, types: bool = False) -> list[str]:
    """Describes the circles between modules: imports inside functions count, those under TYPE_CHECKING if wanted."""
    return _circles((edge for edge in imports(root) if types or not edge.types), str)


def room_circles(root: Path) -> list[str]:
    """Describes the circles between rooms; every import counts, also those under TYPE_CHECKING."""
    return _circles(imports(root), room)


def upward(root: Path) -> list[str]:
    """Lists the imports that go up the table or between rooms that stay apart, and the rooms that no row names."""
    rows = {name: row for row, names in enumerate(ORDER) for name in names}
    strange = {room(module.name): module.path for module in modules(root) if room(module.name) not in rows}
    wrong: list[Import] = []
    for edge in imports(root):
        here, there = room(edge.module.name), room(edge.target or edge.module.name)
        if here != there and here in rows and there in rows:
            goes_up, are_apart = rows[here] > rows[there], {here, there} <= APART
            wrong += [edge] if goes_up or are_apart else []
    return [*(f"{path}:1 room `{name}` is in no row of ORDER" for name, path in strange.items()), *told(wrong)]


def ray_outside_cluster(root: Path) -> list[str]:
    """Lists the imports of ray in raypaml/ outside the folder cluster/; benchmarks under tools/ may import it."""
    edges = (edge for edge in imports(root) if edge.name.split(".")[0] == "ray")
    return told(edge for edge in edges if room(edge.module.name) not in ("cluster", "tools"))


def torch_at_import(root: Path) -> list[str]:
    """Lists the module-level imports of torch in modules that must load without it."""
    edges = (edge for edge in imports(root) if edge.name.split(".")[0] in TORCH and not (edge.lazy or edge.types))
    return told(edge for edge in edges if _is_torch_free(edge.module))


def _is_torch_free(module: Module) -> bool:
    """Says whether a module must load without torch."""
    name = module.name.removeprefix("raypaml.")
    return (room(module.name) in NO_TORCH or name in NO_TORCH) and name not in TORCH_ALLOWED


def metrics_needs(root: Path) -> list[str]:
    """Lists what metrics/ imports beyond the standard library, numpy and scipy."""
    edges = (edge for edge in imports(root) if room(edge.module.name) == "metrics")
    return told(edge for edge in edges if edge.name.split(".")[0] not in METRICS_NEED)


def public_names_twice(root: Path, *, tools: bool = False, constants: bool = True) -> list[str]:
    """Lists the public names that several modules define; `main` and `parse` of commands and tools are exempt."""
    places = defaultdict[str, dict[str, int]](dict)
    for module in modules(root) if tools else package(root):
        exempt = ENTRY_POINTS if room(module.name) in ("commands", "tools") else set()
        for line, name in defined(module, constants=constants):
            if not name.startswith("_") and name not in exempt:
                places[name].setdefault(module.path, line)
    twice = {name: lines for name, lines in sorted(places.items()) if len(lines) > 1}
    return [f"{', '.join(f'{path}:{line}' for path, line in lines.items())} {name}" for name, lines in twice.items()]


def file_names_twice(root: Path) -> list[str]:
    """Lists the file names that occur in several folders."""
    paths = defaultdict[str, list[str]](list)
    for module in modules(root):
        paths[module.path.rpartition("/")[2]].append(module.path)
    return [", ".join(same) for name, same in sorted(paths.items()) if len(same) > 1 and name != "__init__.py"]


def long_commands(root: Path) -> list[str]:
    """Lists the command modules that do more than parse, call and print."""
    commands = [module for module in package(root) if room(module.name) == "commands"]
    return long_files(commands, LONGEST_COMMAND)


def measures(root: Path) -> list[Measure]:
    """Measures a checkout; the result is the rows of the table."""
    return [*layout_measures(root), *size_measures(root), *style_measures(root)]


def layout_measures(root: Path) -> list[Measure]:
    """Measures who imports whom and where names are defined."""
    return [
        Measure("circles", "circles of modules, imports in functions counted", module_circles(root), "0"),
        Measure("type-circles", "the same, imports under TYPE_CHECKING too", module_circles(root, types=True), "0"),
        Measure("room-circles", "circles of rooms, every import counted", room_circles(root), "0"),
        Measure("upward", "imports up the table of rooms; rooms it lacks", upward(root), "0"),
        Measure("ray", "imports of ray in raypaml/, outside cluster/", ray_outside_cluster(root), "0"),
        Measure("torch", "imports of torch at module level, where none may be", torch_at_import(root), "0"),
        Measure("metrics", "imports of metrics/ beyond numpy and scipy", metrics_needs(root), "0"),
        Measure("names-twice", "public names defined twice in raypaml/", public_names_twice(root), "0"),
        Measure(
            "defs-twice", "classes and functions, tools/ too", public_names_twice(root, tools=True, constants=False)
        ),
        Measure("files-twice", "file names twice in raypaml/ and tools/", file_names_twice(root)),
    ]


def size_measures(root: Path) -> list[Measure]:
    """Measures the lengths of files and functions, in raypaml/ and tools/."""
    lines = sum(len(module.text.splitlines()) for module in modules(root))
    density = f"{100 * len(functions(root)) / max(lines, 1):.1f}"
    median, most, longest = (f"{typical_function(root, share)}" for share in (0.5, 0.9, 1))
    about = "lines of the body of a function"
    too_long = typical_function_too_long(root)
    return [
        Measure("long-files", f"files of more than {LONGEST_FILE} lines", long_files(modules(root)), "0"),
        Measure("long-commands", f"commands of more than {LONGEST_COMMAND} lines", long_commands(root), "0"),
        Measure("readme", "lines of README.md", long_readme(root), f"{LONGEST_README}", f"{readme_lines(root)}"),
        Measure("functions", "functions per 100 lines", [], figure=density),
        Measure("median", f"{about}: the median", too_long, f"{MEDIAN_FUNCTION}", median),
        Measure("nine-tenths", f"{about}: 90 % have no more", [], figure=most),
        Measure("longest", f"{about}: the longest", long_functions(root), f"{LONGEST_FUNCTION}", longest),
    ]


def style_measures(root: Path) -> list[Measure]:
    """Counts what makes code hard to read, in raypaml/.

    `helpers` are short private functions that their own module calls in one place. `one-caller` is the wide count: any
    short function whose name one other function uses, whatever it is for.
    """
    helpers, short = helpers_called_once(root), f"of up to {LONGEST_HELPER} lines"
    return [
        Measure("unobserved", "literals -1 that stand for an unobserved label", unobserved_literals(root), "0"),
        Measure("helpers", f"private helpers {short} called once", helpers, f"{MOST_HELPERS}", allowed=MOST_HELPERS),
        Measure("one-caller", f"functions {short} that one function uses", one_caller_functions(root)),
        Measure("any", "uses of Any", uses_of_any(root)),
        Measure("lazy", "imports inside functions", lazy_imports(root)),
        Measure("found", "assignments to `found`", results_named_found(root)),
        Measure("of", "docstrings that begin with `Of`", docstrings_with_of(root)),
    ]


def table(rows: Collection[Measure]) -> list[str]:
    """Returns the lines of the table, followed by everything that breaks a limit."""
    lines = [f"{'row':<14}{'value':>6}{'limit':>7}  what is measured"]
    for row in rows:
        figure, mark = row.figure or str(len(row.offenders)), "  <- broken" if row.is_broken else ""
        lines.append(f"{row.name:<14}{figure:>6}{row.limit or '-':>7}  {row.about}{mark}")
    broken = [row for row in rows if row.is_broken]
    return lines + [f"\n{row.name}: {row.about}\n" + "\n".join(f"  {o}" for o in row.offenders) for row in broken]


def main(argv: list[str] | None = None) -> int:
    """Prints the table, or the places that one row counts; returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m tools.house", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the checkout to measure [this one]")
    parser.add_argument("--offenders", metavar="NAME", help="list the places that this row of the table counts")
    flags = parser.parse_args(argv)
    rows = {row.name: row for row in measures(flags.root.resolve())}
    if flags.offenders and flags.offenders not in rows:
        parser.error(f"--offenders {flags.offenders}: there is no such row; the rows are {', '.join(rows)}")
    print("\n".join(rows[flags.offenders].offenders if flags.offenders else table(rows.values())))
    return int(any(row.is_broken for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
