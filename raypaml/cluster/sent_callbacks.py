"""Callbacks of a program on their way to the workers, which may lack the modules that these come from."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import ray

from raypaml.training.callbacks import Callback

_THERE = ("__main__", "builtins", "raypaml")
"""What is sent with the object, what every Python has, and what is asked for by itself."""


def packed(callbacks: Sequence[Callback]) -> bytes:
    """The callbacks as they are sent; ValueError names one that cannot be."""
    for one in callbacks:
        try:
            ray.cloudpickle.dumps(one)
        except Exception as error:  # whatever its parts raise
            raise ValueError(
                f"callback {type(one).__qualname__}: cannot be sent to the workers ({type(error).__name__}: {error}); "
                "open files and connections when the first call comes, or train with workers=1"
            ) from None
    return bytes(ray.cloudpickle.dumps(tuple(callbacks)))  # together, for they may share objects


def unpacked(sent: bytes) -> tuple[Callback, ...]:
    """The callbacks on a worker; ValueError where it lacks a module of theirs."""
    try:
        callbacks: tuple[Callback, ...] = ray.cloudpickle.loads(sent)
    except Exception as error:  # whatever the modules raise that are imported
        name = (isinstance(error, ImportError) and error.name) or "MODULE"
        raise ValueError(
            f"callbacks cannot be used by a worker ({type(error).__name__}: {error}): have their module where workers "
            "find it, installed or in a folder of PYTHONPATH, or have it sent with them by "
            f"ray.cloudpickle.register_pickle_by_value({name})"
        ) from None
    return callbacks


def modules_of(callbacks: Sequence[Callback]) -> tuple[str, ...]:
    """The packages and modules, by their first name, that a worker has to import for the callbacks' classes.

    Modules that the program has registered with `ray.cloudpickle.register_pickle_by_value` are sent, not imported.
    """
    sent = tuple(f"{name}." for name in ray.cloudpickle.list_registry_pickle_by_value())
    modules = (base.__module__ for one in callbacks for base in type(one).__mro__)
    names = (name.partition(".")[0] for name in modules if not f"{name}.".startswith(sent))
    return tuple(name for name in dict.fromkeys(names) if name in sys.modules and name not in _THERE)
