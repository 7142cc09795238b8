"""Several runs on one cluster: who holds its CPUs, by the records of Ray's control store, and what Ray would mix up."""

from __future__ import annotations

import re
import socket
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import JobTableData, PlacementGroupTableData
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

from raypaml.cluster import checks, holders, process_group, session, shared_cluster, trial_waits
from raypaml.cluster.checks import FINE, WARNING
from raypaml.cluster.shared_cluster import place_of_ray
from raypaml.cluster.trial_waits import TrialWaits
from raypaml.data.storage import Location
from raypaml.recipes import recipe

HERE, FIRST, OTHER, GONE = (bytes([number, 0, 0, 0]) for number in range(1, 5))
COMMAND = "python a_program_of_somebody_else.py --with many --flags that --are of --no interest"


def job(number: bytes, title: str = "", command: str = "", *, ended: bool = False) -> bytes:
    found = JobTableData(job_id=number, entrypoint=command, is_dead=ended)
    if title:
        found.config.metadata["raypaml"] = title
    return bytes(found.SerializeToString())


def group(number: bytes, kind: str, *bundles: dict[str, float]) -> bytes:
    found = PlacementGroupTableData(
        creator_job_id=number, state=PlacementGroupTableData.PlacementGroupState.Value(kind)
    )
    for resources in bundles:
        found.bundles.add().unit_resources.update(resources)
    return bytes(found.SerializeToString())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bytes] | dict[str, float]]:
    """The records of a cluster of 8 CPUs and 2 GPUs, which tests may change."""
    jobs = [
        job(HERE),
        job(FIRST, "run first", "python -m raypaml.train"),
        job(OTHER, "", COMMAND.replace(" ", "\n", 1)),
    ]
    groups = [group(FIRST, "CREATED", {"CPU": 1}, {"CPU": 1, "GPU": 1}), group(OTHER, "CREATED", {"CPU": 3})]
    records: dict[str, Any] = {"jobs": jobs, "groups": groups, "free": {"CPU": 2.0, "GPU": 1.0}}
    accessor = SimpleNamespace(
        get_job_table=lambda **_: records["jobs"], get_placement_group_table=lambda: records["groups"]
    )
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: accessor)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=HERE.hex))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: records["free"])
    return records


def test_those_who_hold_what_a_run_waits_for_are_named(cluster: dict[str, Any]) -> None:
    assert holders.lack("CPU", 2) == ""
    assert holders.lack("CPU", 3) == (
        f"3 CPUs wanted, 2 of 8 CPUs are free: `{COMMAND[:60]}...` holds 3, run first holds 2, others hold 1"
    )
    assert holders.lack("GPU", 2) == "2 GPUs wanted, 1 of 2 GPUs is free: run first holds 1"
    cluster["groups"] += [group(OTHER, "PENDING", {"CPU": 2}), group(FIRST, "REMOVED", {"CPU": 9})]
    assert holders.lack("CPU", 3).endswith(f"others hold 1; `{COMMAND[:60]}...` waits, too")
    assert "waits" not in holders.lack("GPU", 2)


def test_what_this_program_has_got_it_does_not_wait_for(cluster: dict[str, Any]) -> None:
    """Its workers' processes are just starting."""
    cluster["free"] = {}
    cluster["groups"] = [group(HERE, "CREATED", {"CPU": 2}), group(FIRST, "CREATED", {"CPU": 6})]
    assert holders.lack("CPU", 2) == ""
    assert holders.lack("CPU", 3) == "3 CPUs wanted, 0 of 8 CPUs are free: run first holds 6, this program holds 2"


def test_of_two_runs_of_a_program_the_one_that_waits_says_so(cluster: dict[str, Any]) -> None:
    cluster["free"] = {}
    cluster["groups"] = [group(HERE, "CREATED", {"CPU": 2}), group(FIRST, "CREATED", {"CPU": 6})]
    with holders.asking("CPU", 2) as lack:
        assert lack() == ""
        with holders.asking("CPU", 2) as another:
            assert another() == "2 CPUs wanted, 0 of 8 CPUs are free: run first holds 6, this program holds 2"
        assert lack() == ""


def test_a_program_that_has_ended_may_hold_workers_for_a_moment(cluster: dict[str, Any]) -> None:
    cluster["free"] = {}
    cluster["jobs"].append(job(GONE, "run gone", ended=True))
    cluster["groups"] = [group(GONE, "CREATED", {"CPU": 8})]
    assert holders.lack("CPU", 1).endswith("0 of 8 CPUs are free: a program that has ended holds 8")


def test_a_control_store_that_does_not_answer_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", MagicMock(side_effect=ray.exceptions.RpcError("gone", 14)))
    assert holders.lack("CPU", 10**6) == ""


def test_the_doctor_says_whether_a_run_would_wait(cluster: dict[str, Any]) -> None:
    two, five = (checks.room(recipe("digits").override({"workers": workers})) for workers in (2, 5))
    assert (two.level, five.level) == (FINE, WARNING)
    assert two.what.startswith("2 of 8 CPUs are free: ")
    assert five.what.startswith("the run would wait for its workers: 5 CPUs wanted, 2 of 8 CPUs are free: ")
    cluster["free"]["GPU"] = 0
    assert checks.room(recipe("digits").override({"workers": 1, "device": "cuda"})).level == WARNING


def test_of_an_unknown_ray_only_numbers_are_told(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "is_known", lambda: False)
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: pytest.fail("its insides are looked at"))
    cluster["free"] = {"CPU": 8.0}
    assert holders.lack("CPU", 9) == "9 CPUs wanted, 8 of 8 CPUs are free"


def test_a_job_has_the_title_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[Any]()
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options["job_config"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "what_is_missing", lambda *_: [])
    monkeypatch.setattr(session, "told_if_lost", lambda *_, **__: nullcontext())
    for title in ("run first", ""):
        with session.join("auto", title=title):
            pass
    assert given[0].metadata == {"raypaml": "run first"}
    assert given[1] is None


def test_a_search_says_what_its_trials_wait_for_when_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said, asked, lacks = [100.0], list[str](), list[Any](), ["run first holds 2"]
    monkeypatch.setattr(trial_waits, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(holders, "lack", lambda *wanted: asked.append(wanted) or lacks[0])
    waits = TrialWaits(said.append, "CPU", 2)
    trials: list[Any] = [SimpleNamespace(status=status) for status in ("PENDING", "TERMINATED")]
    waits.on_step_end(1, trials)
    assert not asked, "no trial runs"
    trials += [SimpleNamespace(status="RUNNING")] * 2
    for now[0], lacks[0] in ((100, "a"), (101, "b"), (121, "a"), (142, "b"), (163, ""), (184, "b")):
        waits.on_step_end(1, trials)
    assert asked == [("CPU", 2, 4)] * 5
    del trials[-1]
    waits.on_step_end(1, trials)
    assert asked[5:] == [("CPU", 2, 2)], "asked as soon as another number of trials runs"
    assert said == [f"waiting for workers of a trial to start: {what}" for what in "abb"]


def test_no_two_runs_share_the_working_directory_of_their_workers() -> None:
    """Ray makes it on every node by the name, and not by the storage."""
    places = [place_of_ray(Location(storage) / "first") for storage in ("/a", "/b", "s3://b/runs?region=x")]
    assert places[0] == {"name": places[0]["name"], "storage_path": "/a/first/ray"}
    assert places[2]["storage_path"] == "s3://b/runs/first/ray?region=x"
    assert len({place["name"] for place in places}) == 3
    assert all(re.fullmatch(r"first-[0-9a-f]{8}", place["name"]) for place in places)
    assert place_of_ray(Location("/a/first")) == places[0]


@pytest.mark.parametrize("known", [True, False])
def test_what_all_runs_need_lives_on_the_head(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = MagicMock()
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: actor)
    monkeypatch.setattr(shared_cluster, "is_known", lambda: known)
    shared_cluster.coordinator_on_head()
    asked = [one.kwargs for one in actor.options.call_args_list]
    assert [one["resources"] for one in asked] == [{"node:__internal_head__": 0.001}] * known
    assert all((one["get_if_exists"], one["lifetime"]) == (True, "detached") for one in asked)


def test_the_coordinator_is_the_one_that_ray_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same name: its own would be a second one."""
    ours, theirs = MagicMock(), MagicMock()
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: ours)
    shared_cluster.coordinator_on_head()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "00" * 28))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: theirs)
    default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
    asked, wanted = ours.options.call_args.kwargs, theirs.options.call_args.kwargs
    assert (asked["name"], asked["namespace"]) == (wanted["name"], wanted["namespace"])


def test_the_store_of_a_process_group_listens_on_the_nodes_address_alone() -> None:
    with process_group._listen("127.0.0.1") as here, process_group._listen("192.0.2.1") as elsewhere:
        assert here.getsockname()[0] == "127.0.0.1"
        assert elsewhere.getsockname()[0] == "0.0.0.0", "an address that is translated on the way is not this machine's"
    with process_group._listen("::1") as here:
        assert (here.family, here.getsockname()[0]) == (socket.AF_INET6, "::1")
