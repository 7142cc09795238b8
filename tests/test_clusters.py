"""The cluster files, field by field: Ray's own schema, closed doors, no credentials, pinned versions."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raypaml import train
from raypaml.cluster.doors import DASHBOARD, NO_METRICS
from raypaml.config import TrainConfig
from raypaml.credentials import SECRETS
from tests.scan import open_ports

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "clusters").glob("*.yaml"))


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / "clusters" / name).read_text())


@pytest.mark.parametrize(("name", "workers"), [("aws.yaml", 4), ("local.yaml", 2)])
def test_ray_takes_the_file(name: str, workers: int) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert prepared["max_workers"] == workers
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepared | {"max_worker": 3})  # the schema would see a typo


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_every_file_of_the_package_travels_to_the_nodes(name: str) -> None:
    """By rsync's rules: a pattern that begins with a slash holds at the top, one with ** at any depth."""
    patterns = load(name)["rsync_exclude"]
    names = [pattern.rpartition("/")[2] for pattern in patterns if not pattern.startswith("/")]
    tops = [pattern[1:] for pattern in patterns if pattern.startswith("/")]
    for path in (ROOT / "raypaml").rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        assert not any(fnmatch(part, name) for part in parts for name in names), path
        assert not any(fnmatch(parts[0], top) for top in tops), path
    assert any(fnmatch("runs", top) for top in tops)  # what was trained here stays here


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_credentials(path: Path) -> None:
    assert not SECRETS.search(path.read_text())
    assert not re.search(r"aws_(access|secret)|ssh-rsa|BEGIN .*KEY", path.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("name", ["aws.yaml", "local.yaml"])
def test_doors_are_closed_and_every_call_needs_the_token(name: str) -> None:
    file = load(name)
    (start,) = (line for line in file["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert any("export RAY_AUTH_MODE=token" in line for line in file["setup_commands"])
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("PIP_CONSTRAINT=~/raypaml/constraints.txt" in line for line in file["setup_commands"])


def test_the_scan_of_ports_finds_what_is_open_on_however_busy_a_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert open_ports("127.0.0.1", [port - 1, port, *range(1, 10)], patience=0.0) in ([port], [port - 1, port])


def test_metrics_are_served_only_where_strangers_are_kept_out() -> None:
    """They ask for no token. On EC2 the security group keeps strangers out, on Kubernetes the NetworkPolicy."""
    local = load("local.yaml")
    (head,) = (line for line in local["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in local["worker_start_ray_commands"] if "ray start" in line)
    assert head.split("ray start")[0].split()[2:] == list(NO_METRICS)
    assert NO_METRICS[0] in worker.split("ray start")[0]  # the others are of the head
    slurm = (ROOT / "clusters" / "slurm.sbatch").read_text()
    assert f"export {' '.join(NO_METRICS[:2])}" in slurm
    assert "--include-dashboard=false" in slurm


def test_on_kubernetes_nobody_is_let_in_but_the_operator_to_the_dashboard() -> None:
    documents = list(yaml.safe_load_all((ROOT / "clusters" / "kuberay_access.yaml").read_text()))
    (policy,) = (document["spec"] for document in documents if document["kind"] == "NetworkPolicy")
    pods = {"matchLabels": {"app": "raypaml"}}
    operator = {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert (policy["podSelector"], policy["policyTypes"]) == (pods, ["Ingress"])
    within, from_operator = policy["ingress"]
    assert within == {"from": [{"podSelector": pods}]}
    assert from_operator["from"] == [{"namespaceSelector": {}, "podSelector": operator}]
    assert from_operator["ports"] == [{"protocol": "TCP", "port": DASHBOARD}]


def test_aws_spot_workers_a_head_without_work_and_ssh_alone() -> None:
    file = load("aws.yaml")
    head, gpu = (file["available_node_types"][name] for name in ("head", "gpu_spot"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, file["max_workers"])
    for kind in (head, gpu):
        assert kind["node_config"]["IamInstanceProfile"]["Name"].startswith("raypaml-")
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert file["provider"]["security_group"] == {"GroupName": "raypaml"}  # Ray's own rules: SSH, and among themselves


def test_kuberay_is_a_rayjob_of_this_ray_and_this_version_that_starts_two_to_eight_workers() -> None:
    """The operator's rules and its schema: test_kuberay.py."""
    for name in ("kuberay.yaml", "kuberay_cluster.yaml"):
        spec = load(name)["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        (gpu,) = cluster["workerGroupSpecs"]
        pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], gpu)]
        assert cluster["rayVersion"] == importlib.metadata.version("ray")
        assert {pod["containers"][0]["image"].split(":")[1] for pod in pods} == {version()}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    spec = load("kuberay.yaml")["spec"]
    program, *flags = spec["entrypoint"].split("raypaml.train")
    run = parsed(flags[0]).run
    assert (program, run.min_workers, run.workers) == ("python -m ", 2, 8)


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_the_commands_of_the_readme_are_ours() -> None:
    text = (ROOT / "clusters" / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"raypaml\.train ([^'`]+)'", text)
    assert found
    for flags in found:
        parsed(flags)


def parsed(flags: str) -> TrainConfig:
    """What the command would be, were there such a bucket."""
    return train.parse(re.sub(r"--name \S+", "", flags).split())[0]
