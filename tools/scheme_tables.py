"""Rewrites the tables of raypaml/losses/README.md from the records of the schemes.

python tools/scheme_tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from raypaml.cli import Parser  # noqa: E402
from raypaml.losses.otherwise import otherwise_table  # noqa: E402
from raypaml.losses.schemes import markdown_table, published_table  # noqa: E402

README = ROOT / "raypaml" / "losses" / "README.md"


def main() -> None:
    """Rewrites the tables."""
    Parser(prog="python tools/scheme_tables.py", description="Write the tables of raypaml/losses/README.md.").parse()
    text = README.read_text(encoding="utf-8")
    tables = {"schemes": markdown_table(), "published": published_table(), "otherwise": otherwise_table()}
    for mark, table in tables.items():
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
