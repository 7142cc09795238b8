"""Say in which samples, images and labels two prepared data sets differ; exit code 1 if they do.

python tools/compare_data.py A B [--json FILE]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raypaml.data.compare import compare_split, compare_vocabularies, differs
from raypaml.data.index import open_index
from raypaml.data.shards import SPLITS
from raypaml.flags import Parser, run_command
from raypaml.labels import Vocabulary

PROG = "python tools/compare_data.py"


def compare(a: Path, b: Path) -> dict[str, Any]:
    """The comparison of the vocabularies, and of each split by name."""
    for folder in (a, b):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give two prepared data sets")
    classes = [Vocabulary.read(folder / "vocabulary.csv") for folder in (a, b)]
    found = {"vocabulary": compare_vocabularies(*classes)}
    for split in SPLITS:
        there = [(folder / f"{split}.arrow").is_file() for folder in (a, b)]
        if all(there):
            found[split] = compare_split(*(open_index(folder / f"{split}.arrow") for folder in (a, b)), *classes)
        elif any(there):
            found[split] = {f"split only in {'AB'[there.index(True)]}": {"count": 1}}
    return found


def show(found: dict[str, Any]) -> None:
    for part, comparison in found.items():
        print(part)
        for name, difference in comparison.items():
            examples = f"  such as {', '.join(difference['examples'])}" if "examples" in difference else ""
            print(f"  {name}: {difference['count']:,}{examples}")


def main() -> int:
    """Compare two data sets."""
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("a", type=Path, metavar="A", help="folder of a prepared data set")
    flags.add_argument("b", type=Path, metavar="B", help="another")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    asked = flags.parse()
    found = compare(asked.a, asked.b)
    show(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(differs(comparison) for comparison in found.values()))


if __name__ == "__main__":
    run_command(main, PROG)
