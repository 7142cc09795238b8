"""The measures of tools/house.py see what they should, in trees of a few lines that break one rule each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools import house


def tree(root: Path, **files: str) -> Path:
    """Writes a checkout; `data__index` is the file raypaml/data/index.py, and every folder is a package."""
    for name, text in {"__init__": "", **files}.items():
        parts = [name] if name == "__init__" else name.split("__")
        path = root.joinpath("raypaml", *parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


def test_a_clean_tree_breaks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(
        tmp_path,
        train="from raypaml.data import index\nimport ray_like",
        data__index="from raypaml import labels",
        labels="",
    )
    assert house.main(["--root", str(root)]) == 0
    assert "broken" not in capsys.readouterr().out


def test_a_broken_limit_names_the_offender_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path, training__loop="\nimport ray")
    assert house.main(["--root", str(root)]) == 1
    assert "raypaml/training/loop.py:2 raypaml.training.loop imports ray" in capsys.readouterr().out


def test_offenders_lists_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path, files="from typing import Any\nx: Any = 1\nfound = x\n")
    assert house.main(["--root", str(root), "--offenders", "any"]) == 0
    assert capsys.readouterr().out == "raypaml/files.py:2 Any\n"
    assert house.main(["--root", str(root), "--offenders", "found"]) == 0
    assert capsys.readouterr().out == "raypaml/files.py:3 found\n"


def test_circles_of_modules(tmp_path: Path) -> None:
    root = tree(
        tmp_path, data__a="from raypaml.data.b import f", data__b="import raypaml.data.c", data__c="from . import a"
    )
    (circle,) = house.module_circles(root)
    assert circle.splitlines()[0] == "raypaml.data.a <-> raypaml.data.b <-> raypaml.data.c"
    assert "raypaml/data/c.py:1 raypaml.data.c imports raypaml.data.a" in circle
    assert house.room_circles(root) == []


def test_a_circle_through_an_import_inside_a_function(tmp_path: Path) -> None:
    root = tree(tmp_path, data__a="from raypaml.data.b import f", data__b="def f():\n    from raypaml.data import a")
    assert len(house.module_circles(root)) == 1


def test_a_circle_of_rooms_through_an_import_for_types_only(tmp_path: Path) -> None:
    types_only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from raypaml.search.b import B"
    root = tree(tmp_path, search__a="from raypaml.inference import c", search__b="", inference__c=types_only)
    assert [circle.splitlines()[0] for circle in house.room_circles(root)] == ["inference <-> search"]
    assert house.module_circles(root, types=True) == []
    assert house.upward(root) == []


@pytest.mark.parametrize(
    ("files", "offender"),
    [
        (
            {"data__a": "from raypaml.config import X", "config": ""},
            "raypaml/data/a.py:1 raypaml.data.a imports raypaml.config",
        ),
        (
            {"model__a": "\nimport raypaml.losses.b", "losses__b": ""},
            "raypaml/model/a.py:2 raypaml.model.a imports raypaml.losses.b",
        ),
        ({"config": "import raypaml.train", "train": ""}, "raypaml/config.py:1 raypaml.config imports raypaml.train"),
        ({"utils": ""}, "raypaml/utils.py:1 room `utils` is in no row of ORDER"),
    ],
)
def test_imports_up_the_table(tmp_path: Path, files: dict[str, str], offender: str) -> None:
    assert house.upward(tree(tmp_path, **files)) == [offender]


def test_torch_at_module_level_only(tmp_path: Path) -> None:
    lazy = "def f():\n    import torch"
    root = tree(
        tmp_path,
        config=lazy,
        losses__schemes="import torch.nn",
        losses__formulas="import torch",
        data__batches="import torch",
    )
    assert house.torch_at_import(root) == ["raypaml/losses/schemes.py:1 raypaml.losses.schemes imports torch.nn"]
    assert house.metrics_needs(tree(tmp_path / "b", metrics__a="import math, numpy, pyarrow")) == [
        "raypaml/metrics/a.py:1 raypaml.metrics.a imports pyarrow"
    ]


def test_public_names_twice(tmp_path: Path) -> None:
    one = "class Part: ...\nSIZE = 1\n_own = 2\ndef main(): ..."
    root = tree(
        tmp_path, train="def main(): ...", tune=one, data__a="import x\nclass Part: ...\nSIZE: int = 2\n_own = 3"
    )
    assert (
        house.public_names_twice(root)
        == [
            "raypaml/data/a.py:3, raypaml/tune.py:2 SIZE",
            "raypaml/data/a.py:2, raypaml/tune.py:1 Part",
        ][::-1]
    )


HELPERS = """
def _once(x): ...
def _twice(): ...
def _in_a_table(): ...
@cache
def _kept(): ...
def _value_too(): ...
def _long():
    a = 1
    b = 2
    c = 3
    d = 4
    e = 5
    f = 6
def public(): ...
class Own(Library):
    def _hook(self): return super()._hook()
    def _method(self): ...
    @property
    def _count(self): ...
    @property
    def _read_twice(self): ...
    def __len__(self):
        _twice(), public(), _long()
        return self._method() + self._count + self._read_twice + self._read_twice
TABLE = {1: _in_a_table}
x = _once(_twice(), _kept(), _value_too(), map(_value_too, []))
"""


def test_helpers_are_what_is_private_short_and_called_in_one_place(tmp_path: Path) -> None:
    root = tree(tmp_path, files=HELPERS, labels="def _once(): ...\ndef f(): return g(_once)\n")
    assert house.helpers_called_once(root) == [
        "raypaml/files.py:2 _once",
        "raypaml/files.py:18 _method",
        "raypaml/files.py:20 _count",
    ]


def test_so_many_helpers_break_nothing_and_one_more_does(tmp_path: Path) -> None:
    def row(count: int) -> house.Measure:
        text = "\n".join(f"def _f{i}(): ...\n_f{i}()" for i in range(count))
        rows = house.style_measures(tree(tmp_path / str(count), files=text))
        return next(row for row in rows if row.name == "helpers")

    assert not row(house.MOST_HELPERS).is_broken
    one_more = row(house.MOST_HELPERS + 1)
    assert one_more.is_broken
    assert len(one_more.offenders) == house.MOST_HELPERS + 1


def test_functions_that_one_function_uses(tmp_path: Path) -> None:
    helpers = "def once(): ...\ndef twice(): ...\ndef never(): ...\nclass A:\n    def method(self): ...\n"
    users = "from raypaml.files import *\ndef f(a):\n    once(), once(), twice(), a.method()\ndef g():\n    twice()"
    in_a_table = "def entry(): ...\nTABLE = {1: entry}"
    root = tree(tmp_path, cli=in_a_table, files=helpers, labels=users)
    assert house.one_caller_functions(root) == [
        "raypaml/cli.py:1 entry, used by raypaml/cli.py",
        "raypaml/files.py:1 once, used by raypaml/labels.py:2",
        "raypaml/files.py:5 method, used by raypaml/labels.py:2",
    ]
    assert house.helpers_called_once(root) == []
    assert "one-caller" in "".join(row.name for row in house.style_measures(root) if not row.limit)


def test_sizes_and_literals(tmp_path: Path) -> None:
    long = "def f():\n" + "    x = 1\n" * 61
    root = tree(tmp_path, files=long, cli="x = 1\n" * 301, losses__a="labels == -1\nx[-1]")
    (root / "README.md").write_text("line\n" * 151)
    assert house.long_functions(root) == ["raypaml/files.py:1 f: 61 lines"]
    assert house.long_files(house.modules(root)) == ["raypaml/cli.py:301 the file has 301 lines"]
    assert house.long_readme(root) == ["README.md:151 the file has 151 lines"]
    assert house.typical_function_too_long(root) == ["raypaml/ and tools/: the median function has 61 lines"]
    assert house.unobserved_literals(root) == ["raypaml/losses/a.py:1 labels == -1"]


def test_the_sections_of_readmes_that_messages_and_readmes_name_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.compile(r'(?<![\w/.])((?:\w+/)+README\.md)(?:`\]\([^)]*\))?, "([^"]+)"')
    sources = [*root.glob("raypaml/**/*.py"), *root.glob("raypaml/**/*.md"), *root.glob("tools/**/*.md")]
    found = {pair for path in sources for pair in named.findall(" ".join(path.read_text().split()))}
    assert ("losses/README.md", "Pseudo labels") in found
    for readme, section in found:
        path = next(folder / readme for folder in (root / "raypaml", root) if (folder / readme).is_file())
        assert f"## {section}\n" in path.read_text(), (readme, section)


def test_no_docstring_holds_the_quotes_of_a_string_that_was_broken_over_lines() -> None:
    nodes = [(module, node) for module in house.modules(Path(__file__).parents[1]) for node in module.nodes]
    texts = [
        (f"{module.path}:{node.lineno}", node.value.value)
        for module, node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    assert len(texts) > 1000
    assert [place for place, text in texts if re.search(r'"\n\s*"', str(text))] == []
