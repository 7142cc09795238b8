"""A file for `ray up` on AWS, taken apart: its region, its kinds of nodes, and the buckets that are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypaml.cluster.kuberay_file import Tree, part, parts

Client = Callable[[str], Any]
"""Gives a client of boto3 for a service, in the region of a file."""
RESOLVE = "resolve:ssm:"
"""Before the name of a parameter that holds the id of an image."""


@dataclass(frozen=True)
class NodeType:
    """One entry of available_node_types."""

    name: str
    is_head: bool
    config: Tree
    """Its node_config, the request that starts an instance."""
    most: int
    """The most nodes of it."""

    @property
    def instance_type(self) -> str:
        """Such as g5.12xlarge; "" where none is given."""
        return str(self.config.get("InstanceType") or "")

    @property
    def image(self) -> str:
        """An id, or `resolve:ssm:` and the name of a parameter."""
        return str(self.config.get("ImageId") or "")

    @property
    def parameter(self) -> str:
        """The parameter that names the image; "" where none does."""
        return self.image.removeprefix(RESOLVE) if self.image.startswith(RESOLVE) else ""

    @property
    def profile(self) -> str:
        """The name of its instance profile; "" where it has none."""
        arn = str(part(self.config, "IamInstanceProfile", "Arn") or "")
        return str(part(self.config, "IamInstanceProfile", "Name") or arn.rpartition("/")[2])

    @property
    def is_spot(self) -> bool:
        """Whether EC2 may take its nodes away."""
        return part(self.config, "InstanceMarketOptions", "MarketType") == "spot"

    @property
    def disks(self) -> dict[str, int]:
        """Its disks by device name, with their sizes in GiB; 0 where none is given."""
        return {
            str(part(disk, "DeviceName")): _count(part(disk, "Ebs", "VolumeSize"), 0)
            for disk in parts(self.config, "BlockDeviceMappings")
        }


@dataclass(frozen=True)
class AwsFile:
    """What the account is asked about."""

    path: Path
    cluster: str
    region: str
    zones: tuple[str, ...]
    """Availability zones; none for all of the region."""
    is_internal: bool
    """Whether nodes are reached at their private addresses."""
    nodes: tuple[NodeType, ...]
    has_credentials: bool
    """Whether credentials stand in it."""
    buckets: tuple[str, ...]
    """Those that the file and --storage and --data name."""

    @property
    def head(self) -> NodeType | None:
        """The head's kind of node."""
        return next((node for node in self.nodes if node.is_head), None)

    @property
    def started(self) -> list[NodeType]:
        """The kinds of which there may be a node, the head's first."""
        return [*([self.head] if self.head else []), *self.workers]

    @property
    def workers(self) -> list[NodeType]:
        """The other kinds, of which there may be a node."""
        return [node for node in self.nodes if not node.is_head and node.most]


def read_aws_file(path: Path, text: str, document: object, addresses: Sequence[str]) -> AwsFile | None:
    """A file that Ray's schema takes, with further addresses of data or runs; None where it is not for AWS."""
    provider = part(document, "provider")
    if part(provider, "type") != "aws":
        return None
    kinds, head = part(document, "available_node_types"), part(document, "head_node_type")
    all_workers = _count(part(document, "max_workers"), 0)
    nodes = []
    for name, kind in kinds.items() if isinstance(kinds, Mapping) else ():
        config = part(kind, "node_config")
        most = min(all_workers, _count(part(kind, "max_workers"), all_workers))
        nodes.append(NodeType(str(name), name == head, config if isinstance(config, Mapping) else {}, most))
    without_comments = re.sub(r"(^|\s)#.*", "", text)
    named = re.findall(r"\bs3://(?:[^@/\s'\"]+@)?([a-z0-9][a-z0-9.-]+)", " ".join([without_comments, *addresses]))
    zones = str(part(provider, "availability_zone") or "")
    return AwsFile(
        path=path,
        cluster=str(part(document, "cluster_name")),
        region=str(part(provider, "region") or ""),
        zones=tuple(zone.strip() for zone in zones.split(",") if zone.strip()),
        is_internal=bool(part(provider, "use_internal_ips")),
        nodes=tuple(nodes),
        has_credentials=bool(part(provider, "aws_credentials")),
        buckets=tuple(dict.fromkeys(named)),
    )


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) else default
