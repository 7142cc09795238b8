"""Who imports whom, names, sizes, and what --help loads. What is measured, and how, is in tools/house.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from raypaml.__main__ import COMMANDS
from raypaml.labels import VOCABULARY
from raypaml.runs import run_files
from raypaml.search.search_records import BEST_FILE, SEARCH_FILE
from raypaml.shard import KINDS
from tools import house

ROOT = Path(__file__).parent.parent

HELP = """
import contextlib, importlib, io, sys

heavy = {"torch", "ray", "matplotlib"}
for words in map(str.split, sys.argv[1:]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            importlib.import_module(f"raypaml.{words[0]}").main([*words[1:], "--help"])
    except BaseException as stop:
        if not isinstance(stop, SystemExit) or stop.code:
            print(*words, "--help:", repr(stop))
    if "usage" not in said.getvalue().lower():
        print(*words, "--help prints no usage")
    for name in sorted(heavy & sys.modules.keys()):
        print(*words, "--help loads", name)
    heavy -= sys.modules.keys()
"""


def assert_none(*offenders: str) -> None:
    assert not offenders, "\n" + "\n".join(offenders)


def test_imports_go_down_the_table_and_never_in_a_circle() -> None:
    assert_none(*house.upward(ROOT), *house.room_circles(ROOT), *house.module_circles(ROOT, types=True))


def test_ray_is_only_in_cluster_and_torch_where_tensors_are() -> None:
    assert_none(*house.ray_outside_cluster(ROOT), *house.torch_at_import(ROOT))


def test_a_public_name_is_defined_once() -> None:
    assert_none(*house.public_names_twice(ROOT))


def test_files_functions_and_the_readme_are_short() -> None:
    modules = house.modules(ROOT)
    assert_none(*house.long_files(modules), *house.long_functions(ROOT), *house.long_readme(ROOT))
    assert_none(*house.typical_function_too_long(ROOT))


def test_unobserved_is_no_literal_and_metrics_need_only_numpy_and_scipy() -> None:
    assert_none(*house.unobserved_literals(ROOT), *house.metrics_needs(ROOT))


def test_help_loads_neither_torch_nor_ray_nor_matplotlib() -> None:
    """One process asks all commands in turn; of those that load the same package, the first is named."""
    words = [*COMMANDS, *(f"shard {name}" for name in KINDS)]
    process = subprocess.run(
        [sys.executable, "-c", HELP, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert_none(*process.stdout.splitlines(), *process.stderr.splitlines())


def test_the_name_of_a_file_that_several_rooms_share_is_written_once() -> None:
    shared = {name for name in vars(run_files).values() if isinstance(name, str) and re.fullmatch(r"\w+\.\w+", name)}
    shared |= {VOCABULARY, SEARCH_FILE, BEST_FILE}
    literals = (
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in sorted(ROOT.glob("raypaml/**/*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in shared
    )
    owned = [
        line for line in literals if not re.match(r"raypaml/(runs/run_files|labels|search/search_records).py", line)
    ]
    assert_none(*owned)
