"""What the KubeRay operator does with a file, and no schema says: the rules that decide whether a cluster comes up.

Read in the operator's source, github.com/ray-project/kuberay at commit feeaf72fa (2026-08-19, after v1.7.0), under
ray-operator/controllers/ray; each rule names file and function. v1.5.1 and v1.6.2 have the same rules where not said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from raypaml.cluster.checks import FATAL, FINE, WARNING, Finding
from raypaml.cluster.doors import DASHBOARD
from raypaml.cluster.kuberay_file import DEFAULTS, SELECTOR, RayFile, Tree, part, parts

LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
"""Characters: MaxRayJobNameLength and MaxRayClusterNameLength of utils/constant.go."""
TOKENS_SINCE = (2, 52)
"""The Ray version that knows tokens."""
MADE_BY_OPERATOR = ("DenyAll", "DenyAllIngress")
"""Modes of spec.networkPolicy under which nobody but the cluster's own pods gets in; the first is the default."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds between SIGTERM and SIGKILL of a job that is stopped: ray/dashboard/modules/job/job_supervisor.py."""
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
"""A label of the operator's pods: templates/deployment.yaml of its chart, config/manager/manager.yaml."""


@dataclass(frozen=True)
class Rule:
    """Something that the operator demands or does."""

    check: Callable[[RayFile], Iterator[Finding]]
    """Yields what breaks it."""
    source: str
    """File and function of the operator, or the page that says so."""
    is_of_cluster: bool = True
    """Whether it is about the cluster, which a RayJob with clusterSelector does not bring."""


def _name(file: RayFile) -> Iterator[Finding]:
    """The name is a DNS label, short enough for the names that the operator makes of it."""
    longest = LONGEST_NAME[file.kind]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", file.name) or len(file.name) > longest:
        what = f"metadata.name={file.name!r} is refused: small letters, digits and -, a letter first, at most {longest}"
        yield Finding(FATAL, what, "another name")


def _reached(file: RayFile) -> Iterator[Finding]:
    """The operator asks the dashboard for the job's state from its own pod, in InteractiveMode once it has a jobId."""
    mode = str(file.job.get("submissionMode", MODES[0]))
    if file.job and mode not in MODES:
        yield Finding(FATAL, f"submissionMode={mode}: there are {', '.join(MODES)}", "HTTPMode")
    host = file.groups[0].start("dashboard-host")
    if file.job and re.match(r"127\.|::1$|localhost$", host):
        what = f"dashboard-host={host}: the operator waits for a dashboard that it cannot reach; no job starts"
        yield Finding(FATAL, what, "dashboard-host: 0.0.0.0, with authOptions.mode: token and a NetworkPolicy")


def _submission(file: RayFile) -> Iterator[Finding]:
    """What a RayJob may not ask for together."""
    job, mode = file.job, file.job.get("submissionMode", MODES[0])
    ends = bool(job.get("shutdownAfterJobFinishes"))
    wrong = {
        "suspend needs shutdownAfterJobFinishes: true": job.get("suspend") and not ends,
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true": job.get("ttlSecondsAfterFinished") and not ends,
        "suspend does not go with clusterSelector": file.selected and job.get("suspend"),
        "backoffLimit does not go with clusterSelector": file.selected and job.get("backoffLimit"),
        "SidecarMode does not go with clusterSelector": file.selected and mode == "SidecarMode",
        f"clusterSelector needs {SELECTOR}: NAME": file.selected == "?",
        "backoffLimit does not go with InteractiveMode": mode == "InteractiveMode" and job.get("backoffLimit"),
        "SidecarMode takes no submitterPodTemplate and no submitterConfig": mode == "SidecarMode"
        and (job.get("submitterPodTemplate") or job.get("submitterConfig")),
        "SidecarMode needs a head whose restartPolicy is Never or unset": mode == "SidecarMode"
        and part(file.groups[0].pod, "restartPolicy") not in (None, "Never"),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            yield Finding(FATAL, what, "change one of them")


def _account(file: RayFile) -> Iterator[Finding]:
    """With autoscaling the operator refuses a cluster whose head names a ServiceAccount that is not there.

    For other pods Kubernetes itself refuses.
    """
    # lists, for what stands in a file may be of any type
    there = [None, "default", *(part(document, "metadata", "name") for document in file.kinds_beside("ServiceAccount"))]
    for group in file.groups:
        name = part(group.pod, "serviceAccountName")
        if name not in there:
            what = f"{group.name}: serviceAccountName={name} is made by no file in {file.path.parent}"
            makes = f"kubectl create serviceaccount {name} --dry-run=client -o yaml"
            yield Finding(FATAL, what, f"a manifest beside {file.path.name}, as `{makes}` writes it")


def _token(file: RayFile) -> Iterator[Finding]:
    """A token is on, and the Ray version knows it."""
    version = str(file.cluster.get("rayVersion", ""))
    if part(file.cluster, "authOptions", "mode") != "token":
        what = "no token: whoever reaches a pod runs code there, and the dashboard takes jobs from anybody"
        yield Finding(FATAL, what, "authOptions: {mode: token}")
    elif tuple(map(int, re.findall(r"\d{1,9}", version)[:2])) < TOKENS_SINCE:
        yield Finding(
            FATAL, f"rayVersion={version[:40] or 'unset'}: a token needs Ray 2.52 or newer", "the image's version"
        )


def _scaling(file: RayFile) -> Iterator[Finding]:
    """Numbers of pods that contradict each other."""
    version = part(file.cluster, "autoscalerOptions", "version")
    for group in file.groups:
        restart = part(group.pod, "restartPolicy")
        if file.scales and version == "v2" and restart not in (None, "Never"):
            what = f"{group.name}: restartPolicy={restart} does not go with the autoscaler v2"
            yield Finding(FATAL, what, "leave restartPolicy out")
        if group.is_head:
            continue
        for name in DEFAULTS:
            value = group.spec.get(name)
            if value is not None and type(value) is not int:
                what = f"{group.name}: {name}={str(value)[:40]!r} is no whole number; Kubernetes refuses it"
                yield Finding(FATAL, what, "digits alone, without quotation marks")
        least, most = group.number("minReplicas"), group.number("maxReplicas")
        if not 0 <= least <= most:
            yield Finding(FATAL, f"{group.name}: minReplicas={least}, maxReplicas={most}", "0 <= least <= most")


def _resources(file: RayFile) -> Iterator[Finding]:
    """Ray counts a pod's CPUs by its limit, else its request, and its GPUs by its limits alone."""
    for group in file.groups:
        if group.spec.get("resources") and any(map(group.start, ("num-cpus", "num-gpus", "memory", "resources"))):
            yield Finding(FATAL, f"{group.name}: resources stand in rayStartParams and in `resources`", "one of them")
        if not group.container:
            yield Finding(FATAL, f"{group.name}: has no container", "template.spec.containers")
            continue
        resources = part(group.container, "resources")
        asked, most = (part(resources, key, "nvidia.com/gpu") for key in ("requests", "limits"))
        if asked is not None and str(asked) != str(most):
            what = f"{group.name}: nvidia.com/gpu differs in requests and limits; Kubernetes refuses that"
            yield Finding(FATAL, what, "the same in both, or in limits alone")
        if not part(resources, "limits", "memory"):
            what = f"{group.name}: without a memory limit Ray takes the node's memory for its own"
            yield Finding(WARNING, what, "limits: {memory: ...}")


def _images(file: RayFile) -> Iterator[Finding]:
    """All pods have one image, by a version; whoever runs it has put names in."""
    images = {str(image) for group in file.groups if (image := part(group.container, "image"))}
    if len(images) > 1:
        what = f"images differ: {', '.join(sorted(images))}; Ray needs equal versions of Ray and Python in all"
        yield Finding(WARNING, what, "one image")
    for image in sorted(images):
        if "@" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
            what = f"image {image}: pods that start at different times may differ"
            yield Finding(WARNING, what, "a tag that is a version, or a digest")


def _mounts(file: RayFile) -> Iterator[Finding]:
    """Every mount has its volume."""
    for group in file.groups:
        volumes = [part(volume, "name") for volume in parts(group.pod, "volumes")]
        for mount in parts(group.container, "volumeMounts"):
            if part(mount, "name") not in volumes:
                yield Finding(FATAL, f"{group.name}: no volume {part(mount, 'name')} for its mount", "spec.volumes")


def _doors(file: RayFile) -> Iterator[Finding]:
    """A NetworkPolicy selects the pods, lets them reach each other, and lets the operator in where it must."""
    there = file.kinds_beside("NetworkPolicy")
    policies = [one for one in there if "Ingress" in (parts(one, "spec", "policyTypes") or ["Ingress"])]
    own = part(file.cluster, "networkPolicy")  # lets in the cluster's pods, and by a rule alone the operator
    closes = isinstance(own, Mapping) and str(own.get("mode") or MADE_BY_OPERATOR[0]) in MADE_BY_OPERATOR
    for group in file.groups:
        chosen = [policy for policy in policies if _selects(part(policy, "spec", "podSelector"), group.labels)]
        rules = parts(own, "head" if group.is_head else "worker", "ingressRules")
        made: list[Tree] = [{"spec": {"ingress": rules}}] if closes else []
        if made:
            what = "networkPolicy: only an operator of v1.7 or newer whose feature gate RayClusterNetworkPolicy is on"
            yield Finding(WARNING, f"{group.name}: {what} makes it", "switch it on, it is off by default")
        elif not chosen:
            what = f"{group.name}: no NetworkPolicy in {file.path.parent} selects its pods; Ray's ports are open to all"
            yield Finding(WARNING, what, "clusters/kuberay_access.yaml, and its label in template.metadata.labels")
            continue
        elif not any(_lets_in(policy, group.labels, 0) for policy in chosen):
            yield Finding(FATAL, f"{group.name}: the NetworkPolicy keeps Ray's pods from each other", "an ingress rule")
            continue
        if file.job and group.is_head and not any(_lets_in(one, OPERATOR, DASHBOARD) for one in [*chosen, *made]):
            what = f"the NetworkPolicy keeps the operator from the dashboard, port {DASHBOARD}: the job never starts"
            yield Finding(FATAL, what, f"an ingress rule for pods with {OPERATOR}")


def _selects(selector: object, labels: object) -> bool:
    """Whether a selector takes pods with these labels; only matchLabels is looked at."""
    wanted = part(selector, "matchLabels")
    chosen = wanted if isinstance(wanted, Mapping) else {}
    return isinstance(selector, Mapping) and all(part(labels, key) == value for key, value in chosen.items())


def _lets_in(policy: object, labels: object, port: int) -> bool:
    """Whether a policy may let pods with these labels in, to a port; port 0: to all ports.

    Namespaces and addresses are not looked at: whom a rule names by them alone it may let in.
    """
    for rule in parts(policy, "spec", "ingress"):
        ports = [part(entry, "port") for entry in parts(rule, "ports")]
        is_open = not ports or port in ports or None in ports  # a protocol alone means all its ports
        pods = [part(peer, "podSelector") for peer in parts(rule, "from")]
        if is_open and (not pods or any(chosen is None or _selects(chosen, labels) for chosen in pods)):
            return True
    return False


def _ending(file: RayFile) -> Iterator[Finding]:
    """Before a pod ends, only its preStop hook is asked: the operator does not stop a job gracefully."""
    for group in file.groups:
        hook = part(group.container, "lifecycle", "preStop")
        grace = part(group.pod, "terminationGracePeriodSeconds")
        if not hook:
            what = f"{group.name}: no preStop hook; a pod that is taken away loses what it did since a checkpoint"
            yield Finding(WARNING, what, "clusters/pod_leaves.sh, as in clusters/kuberay.yaml")
        elif not isinstance(grace, int) or grace < 90:
            what = f"{group.name}: terminationGracePeriodSeconds={grace or 30} cuts the preStop hook short"
            yield Finding(WARNING, what, "120: 60 for the hook, and some to end")
    if STOP_WAIT not in [part(entry, "name") for entry in parts(file.groups[0].container, "env")]:
        what = f"head: without {STOP_WAIT} a job that is stopped, or deleted, has 3 seconds for its checkpoint"
        yield Finding(WARNING, what, f"env: [{{name: {STOP_WAIT}, value: '60'}}], as in clusters/kuberay.yaml")


def _queue(file: RayFile) -> Iterator[Finding]:
    """Kueue counts the pods that the file asks for, and does not follow an autoscaler."""
    if part(file.labels, "kueue.x-k8s.io/queue-name") and file.scales:
        what = "Kueue admits the pods that stand in the file; those that the autoscaler adds are beyond its quota"
        yield Finding(WARNING, what, "enableInTreeAutoscaling: false, and --workers as many as replicas")


RULES = (
    Rule(_name, "utils/validation.go, ValidateRayJobMetadata, ValidateRayClusterMetadata", False),
    Rule(_reached, "rayjob_controller.go, Reconcile: GetJobInfo at Status.DashboardURL, the head's service"),
    Rule(_submission, "utils/validation.go, ValidateRayJobSpec, validateDeletionConfiguration", False),
    Rule(_account, "raycluster_controller.go, reconcileAutoscalerServiceAccount"),
    Rule(_token, "utils/validation.go, ValidateRayClusterSpec; authOptions since v1.5.1"),
    Rule(_scaling, "utils/validation.go, ValidateRayClusterSpec"),
    Rule(_resources, "utils/validation.go, validateRayGroupResources; common/pod.go, generateRayStartCommand"),
    Rule(_images, "common/pod.go: submitter, autoscaler and init containers take the Ray container's image"),
    Rule(_mounts, "Kubernetes, pod validation"),
    Rule(_doors, "Kubernetes, NetworkPolicy; networkpolicy_controller.go; rayjob_controller.go, Reconcile"),
    Rule(
        _ending,
        "rayjob_controller.go, Reconcile: StopJob, suspending, retrying; common/pod.go sets no hook; "
        "Ray, job_supervisor.py",
    ),
    Rule(_queue, "kueue.sigs.k8s.io/docs/tasks/run/rayjobs; utils/validation.go, ValidateRayJobSpec"),
)


def rules_of(file: RayFile) -> list[Rule]:
    """The rules that a file can break."""
    return [rule for rule in RULES if not (file.selected and rule.is_of_cluster)]


def examine_kuberay(file: RayFile) -> Iterator[Finding]:
    """Yield what breaks a rule of the operator, with the rule's source."""
    for wrong in file.unread:
        yield Finding(WARNING, f"what this file makes is not known: {wrong}", "move it elsewhere, if it is no manifest")
    if file.selected:
        what = f"the job goes to the RayCluster {file.selected[:60]!r} (clusterSelector), which is not looked at"
        yield Finding(FINE, what, "--file with the file of that cluster")
    for rule in rules_of(file):
        for finding in rule.check(file):
            yield Finding(finding.level, f"{finding.what} [{rule.source}]", finding.remedy)
