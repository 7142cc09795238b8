"""What the fields of a configuration dataclass say of themselves: their docstrings and their types."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, Literal, get_type_hints


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass.

    It is a Literal also where the choices are not known when the dataclass is defined: there the field's metadata hold
    a function `choices` that lists them, such as the schemes registered by then.
    """
    types = get_type_hints(cls)
    listed = {
        field.name: field.metadata["choices"]() for field in dataclasses.fields(cls) if "choices" in field.metadata
    }
    return types | {name: Literal.__getitem__(choices) for name, choices in listed.items()}
