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
SELECTOR = "ray.io/cluster"
"""The key of clusterSelector that names a RayCluster."""
_BYTES, _VALUES, _DEEPEST = 1 << 22, 100_000, 100
"""The most bytes of a file, and the most values and levels in it: an alias (*name) counts as what it stands for."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where libyaml is there
DEFAULTS = {"replicas": 0, "minReplicas": 0, "maxReplicas": (1 << 31) - 1, "numOfHosts": 1}
"""Numbers of a group of workers that the CRD fills in where a file has none."""


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

    def number(self, name: str) -> int:
        """One of `DEFAULTS`; the default, too, where something else than a whole number stands."""
        value = self.spec.get(name)
        return value if type(value) is int else DEFAULTS[name]

    def most(self, *, scales: bool) -> int:
        """The most pods that it may have, where the autoscaler adds some and where it does not.

        As the operator counts, utils/util.go, GetWorkerGroupDesiredReplicas and CalculateMaxReplicas.
        """
        if self.spec.get("suspend") is True:
            return 0
        least, most = self.number("minReplicas"), self.number("maxReplicas")
        groups = most if scales else min(max(self.number("replicas"), least), most)
        return groups * self.number("numOfHosts")

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
        if not re.fullmatch(r"\d{1,18}(\.\d+)?m?", text := str(value)):
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
    selected: str
    """The RayCluster to which a RayJob goes that brings none (clusterSelector); "" where it brings one."""
    beside: tuple[Tree, ...]
    """All other documents of this file, and of the YAML files in its folder."""
    unread: tuple[str, ...]
    """What is wrong with files in its folder that seem to be YAML, and are not."""

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
    selector = part(spec, "clusterSelector") if kind == "RayJob" else None
    if not isinstance(spec, Mapping) or not (isinstance(cluster, Mapping) or selector):
        raise ValueError(f"{path}: the {kind} has no spec{'.rayClusterSpec' if kind == 'RayJob' else ''}")
    others, unread = _beside(path)
    return RayFile(
        path=path,
        kind=kind,
        name=str(part(ray, "metadata", "name") or f"{part(ray, 'metadata', 'generateName') or ''}12345"),
        labels=part(ray, "metadata", "labels"),
        job=spec if kind == "RayJob" else {},
        cluster=cluster if isinstance(cluster, Mapping) else {},
        selected=str(part(selector, SELECTOR) or "?") if selector else "",
        beside=(*(document for document in own if document is not ray), *others),
        unread=tuple(unread),
    )


def _beside(path: Path) -> tuple[list[Tree], list[str]]:
    """The documents of the other YAML files in a folder, and what is wrong with those that are none.

    Such as the templates of a Helm chart, or a CRD of ten megabytes: not what was asked about.
    """
    found, unread = list[Tree](), list[str]()
    for other in sorted(path.parent.glob("*.y*ml")):
        if other.name == path.name or not other.is_file():
            continue
        try:
            found += _mappings(other)
        except (ValueError, OSError) as error:
            unread.append(str(error))
    return found, unread


def _mappings(path: Path) -> list[Tree]:
    return [document for document in read_documents(path) if isinstance(document, Mapping)]


def read_documents(path: Path) -> list[object]:
    """The documents of a YAML file, whose aliases are followed, as kubectl and `ray up` do.

    Raises:
        ValueError: no YAML, or too much of it.
    """
    content = read_bytes(path, _BYTES)
    try:
        text = content.decode("utf-8-sig")
        is_small = _is_small(text)
        documents: list[object] = list(yaml.load_all(text, _LOADER)) if is_small else []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    left, count = [(document, 0) for document in documents], len(documents)
    while left and is_small:
        value, depth = left.pop()
        inner = list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        count += len(inner)
        is_small = count <= _VALUES and depth <= _DEEPEST
        left += [(one, depth + 1) for one in inner]
    if not is_small:
        raise ValueError(f"{path}: more than {_VALUES:,} values or {_DEEPEST} levels; write out its aliases (*name)")
    return documents


def _is_small(text: str) -> bool:
    """Whether a text has few values and levels as it stands; asked before anything is built of it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if count > 4 * _VALUES or depth > _DEEPEST:
            return False
    return True
