"""The files for KubeRay: the operator's rules, its CRD where that is at hand, and what a pod does before it ends."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypaml import doctor
from raypaml.cluster.checks import FATAL, WARNING, Finding
from raypaml.cluster.cluster_files import examine_file
from raypaml.cluster.signals import STOPPING, STOPPING_ALL

CLUSTERS = Path(__file__).parent.parent / "clusters"
CRD = CLUSTERS.parent.parent / "shared" / "data" / "kuberay" / "ray.io_rayjobs.yaml"
Change = Callable[[Any], None]


def examined(
    folder: Path, change: Change, name: str = "kuberay.yaml", access: Change = lambda _: None
) -> list[Finding]:
    """The findings about a copy of a cluster file that is changed, beside a changed copy of kuberay_access.yaml."""
    document = yaml.safe_load((CLUSTERS / name).read_text())
    change(document)
    (folder / name).write_text(yaml.safe_dump(document))
    beside = list(yaml.safe_load_all((CLUSTERS / "kuberay_access.yaml").read_text()))
    access(beside)
    (folder / "kuberay_access.yaml").write_text(yaml.safe_dump_all(beside))
    return list(examine_file(folder / name))


def put(path: str, value: object) -> Change:
    """Puts a value at a path of keys and numbers; None takes it away."""
    *way, last = (int(key) if key.isdigit() else key.replace("~", "/") for key in path.split("/"))

    def change(document: Any) -> None:
        for key in way:
            document = document[key]
        document[last] = value
        if value is None:
            del document[last]

    return change


RUN = "raypaml train digits"
CLUSTER, HEAD = "spec/rayClusterSpec", "spec/rayClusterSpec/headGroupSpec"
GPU = "spec/rayClusterSpec/workerGroupSpecs/0"
BROKEN = [
    ("metadata/name", "Raypaml", FATAL, "metadata.name='Raypaml' is refused"),
    ("metadata/name", "r" * 48, FATAL, "at most 47"),
    ("metadata", {"generateName": "raypaml-"}, None, ""),
    ("metadata", {"generateName": "r" * 43}, FATAL, "at most 47"),
    (f"{HEAD}/rayStartParams/dashboard-host", "127.0.0.1", FATAL, "a dashboard that it cannot reach"),
    (f"{HEAD}/rayStartParams/dashboard-host", "localhost", FATAL, "a dashboard that it cannot reach"),
    ("spec/submissionMode", "HttpMode", FATAL, "there are K8sJobMode, HTTPMode, SidecarMode, InteractiveMode"),
    ("spec/submissionMode", "InteractiveMode", FATAL, "backoffLimit does not go with InteractiveMode"),
    ("spec/shutdownAfterJobFinishes", False, FATAL, "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"),
    (f"{HEAD}/template/spec/serviceAccountName", "nobody", FATAL, "serviceAccountName=nobody is made by no file"),
    (f"{HEAD}/template/spec/serviceAccountName", ["a"], FATAL, "serviceAccountName=['a'] is made by no file"),
    (f"{GPU}/template/spec/volumes/0/name", {"a": "b"}, FATAL, "no volume cache for its mount"),
    (f"{CLUSTER}/authOptions", None, FATAL, "no token"),
    (f"{CLUSTER}/rayVersion", "2.51.0", FATAL, "a token needs Ray 2.52 or newer"),
    (f"{GPU}/template/spec/restartPolicy", "Always", FATAL, "does not go with the autoscaler v2"),
    (f"{GPU}/minReplicas", 9, FATAL, "minReplicas=9, maxReplicas=8"),
    (f"{GPU}/minReplicas", None, None, ""),  # the CRD fills in 0, and 2,147,483,647
    (f"{GPU}/maxReplicas", None, None, ""),
    (f"{GPU}/maxReplicas", "8", FATAL, "maxReplicas='8' is no whole number"),
    (f"{GPU}/suspend", True, FATAL, "the worker groups have 0 nvidia.com/gpu at most"),
    (f"{HEAD}/resources", {}, None, ""),
    ("spec/clusterSelector", {"ray.io/cluster": "a"}, FATAL, "backoffLimit does not go with clusterSelector"),
    (f"{CLUSTER}/networkPolicy", {}, WARNING, "feature gate RayClusterNetworkPolicy"),
    (f"{GPU}/resources", {"CPU": "4"}, None, ""),
    (f"{HEAD}/resources", {"CPU": "4"}, FATAL, "resources stand in rayStartParams and in `resources`"),
    (f"{GPU}/template/spec/containers", [], FATAL, "gpu: has no container"),
    (f"{GPU}/template/spec/containers/0/resources/requests/nvidia.com~gpu", "2", FATAL, "differs in requests"),
    (f"{GPU}/template/spec/containers/0/resources/requests/nvidia.com~gpu", 1, None, ""),
    (f"{GPU}/template/spec/containers/0/resources/requests", {"cpu": "10"}, None, ""),
    (f"{GPU}/template/spec/containers/0/resources/limits/memory", None, WARNING, "without a memory limit"),
    (f"{GPU}/template/spec/containers/0/image", "raypaml:1", WARNING, "images differ"),
    (f"{GPU}/template/spec/volumes", None, FATAL, "no volume cache for its mount"),
    (f"{GPU}/template/metadata/labels/app", "other", WARNING, "no NetworkPolicy in"),
    (f"{HEAD}/template/spec/containers/0/lifecycle", None, WARNING, "no preStop hook"),
    (f"{HEAD}/template/spec/containers/0/env", None, WARNING, "has 3 seconds for its checkpoint"),
    (f"{GPU}/template/spec/terminationGracePeriodSeconds", 30, WARNING, "cuts the preStop hook short"),
    ("metadata/labels", {"kueue.x-k8s.io/queue-name": "q"}, WARNING, "Kueue admits the pods that stand in the file"),
    (f"{GPU}/maxReplicas", 4, WARNING, "--workers 8, the worker groups have 4 nvidia.com/gpu at most"),
    (f"{CLUSTER}/enableInTreeAutoscaling", False, WARNING, "the worker groups have 2 nvidia.com/gpu at most"),
    (
        "spec/entrypoint",
        "python -m raypaml.train digits --name a --storage s3://b/c --workers 9 --device cuda",
        FATAL,
        "9",
    ),
    (
        "spec/entrypoint",
        "raypaml train digits --name a --storage runs",
        FATAL,
        "--storage runs is a folder of the head's",
    ),
    ("spec/entrypoint", f"{RUN} --storage s3://b", WARNING, "the command has no --name"),
]


@pytest.mark.parametrize(("path", "value", "level", "text"), BROKEN, ids=[f"{row[0]}={row[1]}"[-50:] for row in BROKEN])
def test_a_file_that_breaks_a_rule_of_the_operator_is_named(
    path: str, value: object, level: str | None, text: str, tmp_path: Path
) -> None:
    new = [finding for finding in examined(tmp_path, put(path, value)) if finding.level in (FATAL, WARNING)][1:]
    if level is None:
        assert not new
        return
    assert any(finding.level == level and text in finding.what for finding in new), new


def test_the_files_as_they_are_break_no_rule_but_have_names_to_be_put_in(tmp_path: Path) -> None:
    for name in ("kuberay.yaml", "kuberay_cluster.yaml"):
        names, fine = examined(tmp_path, lambda _: None, name)
        assert (names.level, fine.level) == (WARNING, "fine")
        assert "YOUR-REGISTRY" in names.what


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([], "keeps Ray's pods from each other"),
        ([{"from": [{"podSelector": {"matchLabels": {"app": "raypaml"}}}]}], "keeps the operator from the dashboard"),
        ([{"from": [{"podSelector": {"matchLabels": {"app": "raypaml"}}}]}, {"ports": [{"port": 80}]}], "the operator"),
        ([{"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP"}]}], ""),
        ([{}], ""),
        (None, ""),
    ],
)
def test_a_network_policy_must_let_the_pods_and_the_operator_in(
    rules: list[Any] | None, text: str, tmp_path: Path
) -> None:
    """One without rules for what comes in, `None` here, keeps nobody out."""

    def close(documents: Any) -> None:
        (policy,) = (document for document in documents if document["kind"] == "NetworkPolicy")
        policy["spec"] |= {"ingress": rules} if rules is not None else {"policyTypes": ["Egress"]}

    fatal = [finding.what for finding in examined(tmp_path, lambda _: None, access=close) if finding.level == FATAL]
    assert bool(fatal) == bool(text)
    assert all(text in what or "from each other" in what for what in fatal), fatal


def test_pods_are_counted_as_the_operator_does(tmp_path: Path) -> None:
    """Without autoscaling `replicas`, within its limits; pods of several hosts count as many."""

    def change(document: Any) -> None:
        cluster = document["spec"]["rayClusterSpec"]
        del cluster["enableInTreeAutoscaling"]
        cluster["workerGroupSpecs"][0] |= {"replicas": 0, "minReplicas": 3, "numOfHosts": 2}

    assert any("have 6 nvidia.com/gpu at most" in finding.what for finding in examined(tmp_path, change))


def test_the_operators_own_policy_lets_the_operator_in_by_a_rule_alone(tmp_path: Path) -> None:
    """buildHeadIngressRules of networkpolicy_controller.go leaves it to the file."""
    operator = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}}
    no_policies: Change = lambda documents: documents.clear()  # noqa: E731
    for rules, refused in (([], True), ([{"from": [operator], "ports": [{"port": 8265}]}], False)):
        policy = put(f"{CLUSTER}/networkPolicy", {"head": {"ingressRules": rules}})
        found = examined(tmp_path, policy, access=no_policies)
        assert any("keeps the operator from the dashboard" in finding.what for finding in found) == refused
        assert not any("open to all" in finding.what for finding in found)


def test_a_job_for_a_cluster_that_is_there_is_checked_alone(tmp_path: Path) -> None:
    def select(document: Any) -> None:
        document["spec"] = {"entrypoint": f"{RUN} --name a", "clusterSelector": {"ray.io/cluster": "raypaml"}}

    goes, comes = examined(tmp_path, select)
    assert (goes.level, comes.level) == ("fine", "fine")
    assert "the RayCluster 'raypaml' (clusterSelector)" in goes.what
    assert "the 2 rules" in comes.what


def test_what_stands_beside_a_file_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "chart.yaml").write_text("{{- if .Values.gpu }}\na: [\n")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "nowhere.yaml").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    names, beside, fine = examined(tmp_path, lambda _: None)
    assert (names.level, beside.level, fine.level) == (WARNING, WARNING, "fine")
    assert f"is not known: {tmp_path / 'chart.yaml'} is no YAML" in beside.what


def test_a_loopback_dashboard_is_right_where_no_operator_asks_it(tmp_path: Path) -> None:
    put_loopback = put("spec/headGroupSpec/rayStartParams/dashboard-host", "127.0.0.1")
    assert all(finding.level != FATAL for finding in examined(tmp_path, put_loopback, "kuberay_cluster.yaml"))


def test_the_doctor_takes_a_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--file", str(CLUSTERS / "kuberay.yaml")]) == 0
    assert "nothing that would stop the cluster" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave recipe and settings out"):
        doctor.main(["digits", "--file", str(CLUSTERS / "kuberay.yaml")])
    with pytest.raises(ValueError, match="neither a RayJob, a RayCluster, nor a file for `ray up`"):
        doctor.main(["--file", str(CLUSTERS / "kuberay_access.yaml")])
    (tmp_path / "other.yaml").write_text("kind: RayService")
    with pytest.raises(ValueError, match="holds RayService, which is neither a RayJob, a RayCluster, nor"):
        doctor.main(["--file", str(tmp_path / "other.yaml")])
    (tmp_path / "two.yaml").write_text("provider: {type: aws}\n---\nprovider: {type: aws}")
    with pytest.raises(ValueError, match="holds 2 documents of YAML; `ray up` reads a file of one"):
        doctor.main(["--file", str(tmp_path / "two.yaml")])
    for broken in (b"a: [", b"\xff\xfe"):
        (tmp_path / "broken.yaml").write_bytes(broken)
        with pytest.raises(ValueError, match=r"broken\.yaml is no YAML"):
            doctor.main(["--file", str(tmp_path / "broken.yaml")])


def test_aliases_are_followed_until_they_stand_for_too_much(tmp_path: Path) -> None:
    """kubectl and `ray up` follow them too; a small file of them may stand for 10^9 values."""
    text = (CLUSTERS / "kuberay.yaml").read_text().replace("image: YOUR", "image: &image YOUR", 1)
    first, image, rest = text.partition(
        "            - name: ray-worker\n                image: YOUR-REGISTRY/raypaml:0.1.0"
    )
    assert image
    (tmp_path / "kuberay.yaml").write_text(f"{first}{image.partition('YOUR')[0]}*image{rest}")
    shutil.copy(CLUSTERS / "kuberay_access.yaml", tmp_path)
    assert [finding.level for finding in examine_file(tmp_path / "kuberay.yaml")] == [WARNING, "fine"]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    for hostile in (bomb, "- &a [*a]\n", "[" * 200 + "]" * 200, "[" * 10**6, "- 1\n" * 10**6):
        (tmp_path / "hostile.yaml").write_text(hostile)
        with pytest.raises(ValueError, match="write out its aliases"):
            list(examine_file(tmp_path / "hostile.yaml"))


@pytest.mark.parametrize("amount", [".inf", "4 cores", "[4]", "-1", f"'{'9' * 400}'"])
def test_an_amount_that_is_no_number_is_named(amount: str, tmp_path: Path) -> None:
    limits = put(f"{GPU}/template/spec/containers/0/resources/limits/nvidia.com~gpu", yaml.safe_load(amount))
    with pytest.raises(
        ValueError, match=r"^gpu: resources of nvidia.com/gpu: .* is no number, such as 2, 0\.5 or 500m"
    ):
        examined(tmp_path, limits)


@functools.cache
def _versions() -> Any:
    return yaml.load(CRD.read_text(), yaml.CSafeLoader)["spec"]["versions"]  # in seconds


@pytest.mark.skipif(not CRD.is_file(), reason=f"no {CRD}")
@pytest.mark.parametrize("name", ["kuberay.yaml", "kuberay_cluster.yaml"])
def test_the_operators_own_schema_takes_the_file(name: str) -> None:
    from jsonschema import Draft7Validator

    (schema,) = (version["schema"]["openAPIV3Schema"] for version in _versions() if version["name"] == "v1")
    document = yaml.safe_load((CLUSTERS / name).read_text())
    spec = schema["properties"]["spec"]
    if document["kind"] == "RayCluster":
        spec = spec["properties"]["rayClusterSpec"]
    validator = Draft7Validator(closed(spec))
    assert not [error.message for error in validator.iter_errors(document["spec"])]
    document["spec"]["dashboardHost"] = "0.0.0.0"
    assert list(validator.iter_errors(document["spec"]))


def closed(schema: Any) -> Any:
    """The schema, in which a field that it does not know is an error, as under `kubectl create --validate=strict`."""
    if not isinstance(schema, dict):
        return [closed(entry) for entry in schema] if isinstance(schema, list) else schema
    new = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        new.setdefault("additionalProperties", False)
    return new


def stand_in_for_ray(folder: Path) -> dict[str, str]:
    """An environment in which Ray's command line is a stand-in that notes what it was told."""
    (folder / "ray").write_text(f'#!/bin/sh\necho "$@" > {folder / "told"}\n')
    (folder / "ray").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


ENDS_SLOWLY = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[0]).parent
def end(*_):
    time.sleep(1)
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
(here / "up").touch()
time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a process namespace in which only its own processes end")
def test_a_head_that_ends_asks_its_commands_to_end_and_waits(tmp_path: Path) -> None:
    (tmp_path / "raypaml_of_a_test.py").write_text(ENDS_SLOWLY)
    pod = f"""
        {sys.executable} {tmp_path}/raypaml_of_a_test.py & running=$!
        until [ -e {tmp_path}/up ]; do sleep 0.1; done
        bash {CLUSTERS}/pod_leaves.sh head 30
        [ -e {tmp_path}/saved ] && echo waited
        wait $running; echo $?
    """
    in_namespace = ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", pod]
    done = subprocess.run(in_namespace, capture_output=True, text=True, check=True, env=stand_in_for_ray(tmp_path))
    assert done.stdout.split() == ["waited", "143"]
    assert not (tmp_path / "told").exists()  # a head is not drained


DELETED = """
import pathlib, signal, sys, time
here, received = pathlib.Path(sys.argv[0]).parent, []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
(here / "up").touch()
while not received:
    time.sleep(0.05)
print("stopping after this step, with a checkpoint, or after this part; once more to stop at once", file=sys.stderr)
time.sleep(4)
sys.exit(143 if len(received) == 1 else 1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a process namespace in which only its own processes end")
def test_a_command_that_the_operator_has_stopped_is_not_asked_once_more(tmp_path: Path) -> None:
    """`kubectl delete rayjob`: the operator's StopJob comes first, then the end of the pod."""
    (tmp_path / "raypaml_of_a_test.py").write_text(DELETED)
    pod = f"""
        {sys.executable} {tmp_path}/raypaml_of_a_test.py 2> {tmp_path}/job.log & running=$!
        until [ -e {tmp_path}/up ]; do sleep 0.1; done
        kill -TERM $running
        PAUSE=1 bash {CLUSTERS}/pod_leaves.sh head 30
        wait $running; echo $?
    """
    in_namespace = ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", pod]
    done = subprocess.run(in_namespace, capture_output=True, text=True, check=True, env=stand_in_for_ray(tmp_path))
    assert done.stdout.split() == ["143"]


@pytest.mark.parametrize("line", [STOPPING, STOPPING_ALL])
def test_what_runs_say_when_they_stop_is_what_the_hook_looks_for(line: str) -> None:
    (sought,) = re.findall(r"grep -q '(stopping[^']+)'", (CLUSTERS / "pod_leaves.sh").read_text())
    assert re.search(sought, line)


def test_a_worker_that_ends_tells_ray_and_waits_for_its_run_no_longer_than_asked(tmp_path: Path) -> None:
    began = time.monotonic()
    with subprocess.Popen(["bash", "-c", 'exec -a "ray::RayTrainWorker.run" sleep 60']) as busy:
        script = ["bash", str(CLUSTERS / "pod_leaves.sh"), "worker", "2"]
        subprocess.run(script, check=True, env=stand_in_for_ray(tmp_path))
        busy.kill()
    assert 1 <= time.monotonic() - began < 30
    assert (tmp_path / "told").read_text().startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert "--deadline-remaining-seconds 2" in (tmp_path / "told").read_text()
