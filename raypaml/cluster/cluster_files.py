"""`raypaml doctor --file`: what would go wrong with a cluster file, before anything is started or billed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from raypaml.cluster.aws_checks import examine_aws
from raypaml.cluster.aws_file import read_aws_file
from raypaml.cluster.checks import FATAL, FINE, WARNING, Finding
from raypaml.cluster.kuberay_file import RayFile, part, parts, read_documents, read_kuberay_file
from raypaml.cluster.kuberay_rules import examine_kuberay, rules_of
from raypaml.cluster.worker_errors import brief_cause


def examine_file(path: Path, addresses: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the findings about one file: for KubeRay, or for `ray up`; for AWS, the account is asked too.

    Args:
        path: the file.
        addresses: of data and runs; the account is asked about their buckets.

    Raises:
        ValueError: the file is neither, or addresses are given and it is not for AWS.
        OSError: it cannot be read.
    """
    ray = read_kuberay_file(path)  # which says what is no YAML
    documents = read_documents(path)
    if addresses and part(documents[0] if documents else None, "provider", "type") != "aws":
        raise ValueError(f"{path}: --data and --storage go with a file for AWS alone, whose buckets are looked for")
    text = path.read_text(encoding="utf-8-sig")
    if names := sorted(set(re.findall(r"YOUR-[A-Z-]+", re.sub("#.*", "", text)))):
        yield Finding(WARNING, f"{path} still has {', '.join(names)}", "put your names in")
    if ray:
        findings = [*examine_kuberay(ray), *run_fits(ray)]
        yield from findings
        if not any(finding.level == FATAL for finding in findings):
            count = len(rules_of(ray))
            yield Finding(FINE, f"{path}: the {count} rules of the KubeRay operator let this {ray.kind} come up")
    else:
        taken, filled = _ray_schema(path, documents)
        yield taken
        file = read_aws_file(path, text, filled, addresses) if taken.level == FINE else None
        if file:
            yield from examine_aws(file)


def run_fits(file: RayFile) -> Iterator[Finding]:
    """Whether the cluster can hold the run that a RayJob starts, and the run can be given again."""
    command = str(file.job.get("entrypoint", ""))
    if not re.search(r"raypaml[. ](train|tune)\b", command):
        return
    if not re.search(r"--name[= ]", command):
        what = "the command has no --name: what is submitted again begins again, under another name"
        yield Finding(WARNING, what, "--name NAME")
    if file.selected:
        return
    storage = re.search(r"--storage[= ](\S+)", command)
    mounts = parts(file.groups[0].container, "volumeMounts")
    if not (storage and "://" in storage[1]) and not mounts:
        what = f"--storage {storage[1] if storage else 'runs'} is a folder of the head's own, and goes with its pod"
        yield Finding(FATAL, what, "--storage s3://..., or a volume that all pods mount")
    workers = re.search(r"--workers[= ](\d{1,9})(?::(\d{1,9}))?", command)
    least, most = (int(workers[1]), int(workers[2] or workers[1])) if workers else (1, 1)
    resource = "nvidia.com/gpu" if re.search(r"--device[= ]cuda", command) else "cpu"
    room = sum(int(group.amount(resource)) * group.most(scales=file.scales) for group in file.groups[1:])
    if room < least:
        what = f"--workers {least} at least, the worker groups have {room} {resource} at most: the run waits for ever"
        yield Finding(FATAL, what, "more pods, or fewer workers")
    elif room < most:
        yield Finding(WARNING, f"--workers {most}, the worker groups have {room} {resource} at most", "more pods")


def _ray_schema(path: Path, documents: list[object]) -> tuple[Finding, object]:
    """Whether `ray up` takes the file, by Ray's own schema; and the file with what Ray fills in."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not any(part(document, "provider") for document in documents):
        kinds = sorted({str(kind)[:40] for document in documents if (kind := part(document, "kind"))})
        holds = f"holds {', '.join(kinds)}, which is" if kinds else "is"
        raise ValueError(f"{path} {holds} neither a RayJob, a RayCluster, nor a file for `ray up`")
    if len(documents) != 1:
        raise ValueError(f"{path} holds {len(documents)} documents of YAML; `ray up` reads a file of one")
    try:
        filled = prepare_config(documents[0])
        validate_config(filled)
    except Exception as error:  # whatever Ray's checks raise
        return Finding(FATAL, f"{path}: `ray up` refuses it: {brief_cause(error)}", "the field that it names"), None
    return Finding(FINE, f"{path}: Ray's schema takes it"), filled
