"""A file for Kubernetes, taken apart: the RayJob or RayCluster in it, its groups of pods, and what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from raypaml.bounded import read_bytes

Tree = Mapping[str, object]
"""A mapping of YAML; `part` and `parts` look into it."""
RAY_KINDS = ("RayJob", "RayCluster")
_BYTES, _VALUES, _DEEPEST = 1 << 22, 100_000, 100
"""The most bytes of a file, and the most values and levels in it: an alias (*name) counts as what it stands for."""


def part(tree: object, *path: str) -> object:
    """What stands at a path of keys; None where it, or a mapping on the way to it, is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def parts(tree: object, *path: str) -> list[object]:
    """The entries of the list at a path of keys; none where it is missing."""
    entries = part(tree, *path)
    return entries if isinstance(entries, list) else []


@dataclass(frozen=True)
class PodGroup:
    """The head, or one group of workers, of a Ray cluster."""

    name: str
    is_head: bool
    spec: Tree
    """headGroupSpec, or an entry of workerGroupSpecs."""

    @property
    def pod(self) -> object:
        """The spec of its pods."""
        return part(self.spec, "template", "spec")

    @property
    def container(self) -> object:
        """The container that runs Ray: the operator takes the first."""
        return next(iter(parts(self.pod, "containers")), None)

    @property
    def labels(self) -> object:
        """The labels of its pods."""
        return part(self.spec, "template", "metadata", "labels")

    def most(self, *, scales: bool) -> int:
        """The most pods that it may have, where the autoscaler adds some and where it does not."""
        names = ("maxReplicas", "replicas") if scales else ("replicas", "minReplicas")
        most = self.spec.get(names[0], self.spec.get(names[1], 0))
        return most if isinstance(most, int) else 0

    def start(self, name: str) -> str:
        """A flag of `ray start`, as it is given; "" where it is not."""
        value = part(self.spec, "rayStartParams", name)
        return "" if value is None else str(value)

    def amount(self, resource: str) -> float:
        """What a pod asks for of a resource (`cpu`, `nvidia.com/gpu`): its limit, else its request; 0 where neither.

        Raises:
            ValueError: it is no number, such as 2, 0.5 or 500m.
        """
        resources = part(self.container, "resources")
        value = part(resources, "limits", resource) or part(resources, "requests", resource) or 0
        if not re.fullmatch(r"\d+(\.\d+)?m?", text := str(value)):
            raise ValueError(
                f"{self.name}: resources of {resource}: {text[:80]!r} is no number, such as 2, 0.5 or 500m"
            )
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


@dataclass(frozen=True)
class RayFile:
    """One RayJob or RayCluster."""

    path: Path
    kind: str
    """RayJob or RayCluster."""
    name: str
    labels: object
    """The labels of its metadata."""
    job: Tree
    """The spec of the RayJob; empty for a RayCluster."""
    cluster: Tree
    """The spec of the cluster."""
    beside: tuple[Tree, ...]
    """All other documents of this file, and of the YAML files in its folder."""

    @property
    def groups(self) -> list[PodGroup]:
        """The head, then the groups of workers."""
        head = part(self.cluster, "headGroupSpec")
        workers = [group for group in parts(self.cluster, "workerGroupSpecs") if isinstance(group, Mapping)]
        return [
            PodGroup("head", True, head if isinstance(head, Mapping) else {}),
            *(PodGroup(str(group.get("groupName", "")), False, group) for group in workers),
        ]

    @property
    def scales(self) -> bool:
        """Whether Ray's autoscaler adds and removes pods."""
        return bool(part(self.cluster, "enableInTreeAutoscaling"))

    def kinds_beside(self, kind: str) -> Iterator[Tree]:
        """The documents of a kind that stand beside it."""
        return (document for document in self.beside if document.get("kind") == kind)


def read_kuberay_file(path: Path) -> RayFile | None:
    """The RayJob or RayCluster of a file; None where the file has neither.

    Raises:
        ValueError: no YAML, more than one RayJob or RayCluster, or one without a spec.
    """
    own = _mappings(path)
    rays = [document for document in own if document.get("kind") in RAY_KINDS]
    if not rays:
        return None
    if len(rays) > 1:
        raise ValueError(f"{path} holds {len(rays)} documents of kind {' or '.join(RAY_KINDS)}; one a file is checked")
    (ray,) = rays
    kind, spec = str(ray["kind"]), ray.get("spec")
    cluster = part(spec, "rayClusterSpec") if kind == "RayJob" else spec
    if not isinstance(spec, Mapping) or not isinstance(cluster, Mapping):
        raise ValueError(f"{path}: the {kind} has no spec{'.rayClusterSpec' if kind == 'RayJob' else ''}")
    others = [document for document in own if document is not ray]
    for other in sorted(path.parent.glob("*.y*ml")):
        others += _mappings(other) if other.name != path.name else []
    name = str(part(ray, "metadata", "name") or f"{part(ray, 'metadata', 'generateName') or ''}12345")
    return RayFile(
        path, kind, name, part(ray, "metadata", "labels"), spec if kind == "RayJob" else {}, cluster, tuple(others)
    )


def _mappings(path: Path) -> list[Tree]:
    return [document for document in read_documents(path) if isinstance(document, Mapping)]


def read_documents(path: Path) -> list[object]:
    """The documents of a YAML file, whose aliases are followed, as kubectl and `ray up` do.

    Raises:
        ValueError: no YAML, or too much of it.
    """
    content = read_bytes(path, _BYTES)
    try:
        documents = list(yaml.safe_load_all(content.decode("utf-8-sig")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    left, count = [(document, 0) for document in documents], len(documents)
    while left:
        value, depth = left.pop()
        inner = list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        count += len(inner)
        if count > _VALUES or depth > _DEEPEST:
            raise ValueError(
                f"{path}: more than {_VALUES:,} values or {_DEEPEST} levels; write out its aliases (*name)"
            )
        left += [(one, depth + 1) for one in inner]
    return documents
