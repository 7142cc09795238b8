"""What the nodes of a cluster lack of raypaml and of the program's modules, and sending it to them with a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raypaml.extensions import modules_named
from raypaml.runs.run_folder import versions

OURS = versions()["raypaml"]

NEEDED = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pyarrow", "safetensors", "PIL", "simplejpeg", "rich")
"""Modules of other packages without which no worker starts; they are too large to be sent."""


@dataclass(frozen=True)
class Missing:
    """What one node lacks of raypaml and of what raypaml needs."""

    host: str
    version: str
    """The version of raypaml there; empty where there is none."""
    modules: tuple[str, ...]
    """Modules of the program, such as those of `--import`, that the node cannot import."""
    packages: tuple[str, ...]
    """Packages of NEEDED that the node cannot import."""

    @property
    def is_complete(self) -> bool:
        """Whether the node could run a worker of this program."""
        return self.version == OURS and not self.modules and not self.packages

    def __str__(self) -> str:
        had = f"raypaml {self.version} instead of {OURS}" if self.version else "no raypaml"
        lacks = [] if self.version == OURS else [had]
        lacks += [f"no {name}" for name in (*self.modules, *self.packages)]
        return f"{self.host} has {', '.join(lacks)}"


Facts = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""What a node answers: the arguments of `Missing`."""


def what_is_missing(on_every_node: Callable[..., list[Facts]], needs: Sequence[str] = ()) -> list[Missing]:
    """Ask every node for raypaml, the modules of `--import`, and those of `needs`; list the nodes that lack any."""
    names = (name.split(".")[0] for name in filter(None, (*modules_named().split(","), *needs)))
    imported = tuple(dict.fromkeys(names))
    nodes = [Missing(*facts) for facts in on_every_node(_asker(), imported, NEEDED)]
    return [node for node in nodes if not node.is_complete]


def _asker() -> Callable[[Sequence[str], Sequence[str]], Facts]:
    """A function that is pickled by value, since a node that lacks raypaml could not import one from it."""

    def ask(modules: Sequence[str], needed: Sequence[str]) -> Facts:
        import importlib
        import importlib.util
        import platform

        def lacking(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in names if importlib.util.find_spec(name) is None)

        try:
            there = importlib.import_module("raypaml")
        except ImportError:
            return platform.node(), "", lacking(modules), lacking(needed)
        # a folder named raypaml that is not the package has no version
        return platform.node(), getattr(there, "__version__", ""), lacking(modules), lacking(needed)

    ask.__module__ = "__main__"  # functions of __main__ are pickled by value
    return ask


def runtime_env(missing: Sequence[Missing]) -> dict[str, list[str]]:
    """A runtime environment of Ray that sends this program's raypaml, and the missing modules, to the nodes.

    Raises:
        ValueError: nodes lack packages that are not sent.
    """
    if lacking := [node for node in missing if node.packages]:
        raise ValueError(
            f"{'; '.join(map(str, lacking))}: install raypaml=={OURS} with its dependencies on every "
            f"node, or use an image that has them"
        )
    names = ["raypaml", *dict.fromkeys(name for node in missing for name in node.modules)]
    modules = [sys.modules[name] for name in names]
    # the folder of a package, or the file of a module
    places = [str(Path(one.__path__[0] if hasattr(one, "__path__") else str(one.__file__))) for one in modules]
    return {"py_modules": places, "excludes": ["__pycache__", "*.pyc"]}
