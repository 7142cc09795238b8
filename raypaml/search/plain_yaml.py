"""Reads YAML that people write, without what makes a small file a large value or hides a value."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from raypaml.bounded import read_bytes

YAML_BYTES = 1 << 20
"""The most bytes of a file."""
_DEEPEST = 32


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # of a library without types
    """YAML without aliases, which can stand for 10^9 values, without any depth, and without a key twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "an alias (*name); write the value again", event.start_mark)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, count in names.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; ValueError, which names it, where it is none, or has an alias or a tag of Python."""
    content = read_bytes(path, YAML_BYTES)
    try:
        return yaml.load(content.decode("utf-8-sig"), _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable YAML file ({_yaml_fault(error)})") from None


def _yaml_fault(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {problem}" if mark else problem
