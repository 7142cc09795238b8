"""The rooms of DESIGN.md, section 2: who may import whom, how long files are, and that the README's map is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "raypaml").rglob("*.py"))
OURS = {path.relative_to(ROOT / "raypaml").parts[0].removesuffix(".py") for path in MODULES}

RAY = {"cluster.py", "fit.py", "tune.py"}
MAY_IMPORT = {
    "labels.py": set(),
    "config.py": {"labels"},
    "recipes.py": {"config"},
    "flags.py": set(),
    "data": {"labels", "data"},
    "model": {"model"},
    "losses": {"labels", "losses"},
    "metrics": {"labels", "metrics"},
    "predictions": {"labels", "predictions"},
    "preparation": {"labels", "data", "preparation"},
    "training": {"labels", "config", "data", "model", "losses", "metrics", "predictions", "training"},
    "serving": {"labels", "config", "data", "preparation", "model", "metrics", "training", "reports", "serving"},
    "auditing": {"labels", "data", "model", "training", "auditing"},
    "search": {"labels", "config", "recipes", "flags", "data", "training", "search"},
    "reports": {"labels", "config", "data", "model", "metrics", "predictions", "preparation", "search", "reports"},
    "cluster.py": set(),
    "tasks.py": {"cluster"},
}
NO_TORCH = {"labels.py", "config.py", "recipes.py", "flags.py", "metrics", "predictions", "preparation", "tasks.py"}
METRICS_NEED = {"numpy", "scipy", "raypaml"}
METRICS_NEED |= {"__future__", "collections", "concurrent", "dataclasses", "functools", "typing"}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "raypaml").parts[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_ray_is_kept_at_arms_length(path: Path) -> None:
    uses_ray = any(module.split(".")[0] == "ray" for module in imports(path))
    assert not uses_ray or room(path) in RAY


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) in MAY_IMPORT], ids=name)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    ours = {module.split(".")[1] for module in imports(path) if module.startswith("raypaml.")}
    assert ours & OURS <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_torch_stays_where_tensors_are(path: Path) -> None:
    uses_torch = any(module.split(".")[0] == "torch" for module in imports(path))
    is_data = room(path) == "data" and path.name != "batches.py"
    assert not (uses_torch and (room(path) in NO_TORCH or is_data))


@pytest.mark.parametrize("path", sorted((ROOT / "raypaml" / "metrics").glob("*.py")), ids=name)
def test_metrics_are_numpy_alone(path: Path) -> None:
    """And scipy, for connected parts; streaming and spilling, with pyarrow, are in raypaml/predictions."""
    assert {module.split(".")[0] for module in imports(path)} <= METRICS_NEED


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tools").glob("*.py"))], ids=name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def functions() -> list[tuple[str, int]]:
    nodes = ((path, node) for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    return [
        (f"{name(path)}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.body[0].lineno + 1)
        for path, node in nodes
        if isinstance(node, ast.FunctionDef)
    ]


def test_functions_are_short() -> None:
    found = functions()
    assert [function for function in found if function[1] > 60] == []
    assert sorted(lines for _, lines in found)[len(found) // 2] <= 12


def test_no_literal_stands_for_unobserved() -> None:
    """-1 as a label is written UNOBSERVED; what remains are axes, slices and exponents."""
    pattern = re.compile(r"(labels?|truth)\b[^#\n]*(==|!=|>=|<=|=) *-1\b")
    found = [
        name(p) for p in MODULES if p.name != "labels.py" for line in p.read_text().splitlines() if pattern.search(line)
    ]
    assert found == []


def file_map() -> list[str]:
    section = (ROOT / "README.md").read_text().split("## The files")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def test_the_readme_maps_every_file_and_no_other() -> None:
    listed = file_map()
    assert len(listed) == len(set(listed))
    wanted = [*MODULES, *(ROOT / "tools").glob("*.py")]
    assert sorted(listed) == sorted(name(path) for path in wanted if path.name != "__init__.py")
