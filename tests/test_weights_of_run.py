"""`--from RUN`: another run begins with the weights of one, and keeps to them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raypaml.config import EARLIER, TrainConfig
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.labels import Vocabulary
from raypaml.recipes import recipe
from raypaml.runs.alpha_of_use import model_digest
from raypaml.runs.checkpoint import load_model, valid_checkpoints
from raypaml.runs.models import tested_checkpoint as best_of
from raypaml.runs.run_flags import parse_run
from raypaml.runs.run_folder import claim, stored_config
from raypaml.runs.weights_of_run import with_weights_of_run
from raypaml.training.job import plan_job, prepare_job
from raypaml.training.loop import train
from raypaml.training.resume import restore
from raypaml.training.worker import Worker, build_worker
from tests.conftest import newest_files, run_distributed, train_here

CPU = torch.device("cpu")


@pytest.fixture
def source(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(
        shutil.copytree(trained[0], tmp_path / "source", ignore=shutil.ignore_patterns("predictions", "*.html"))
    )


def config(data: Path, storage: Path, run: Path, **values: Any) -> TrainConfig:
    places = {"data": str(data), "storage": str(storage), "name": "new", "from_run": str(run)}
    return recipe("digits").override({"epochs": 1, "seed": 7, "workers": 1} | places | values)


def begun(asked: TrainConfig, folder: Path) -> Worker:
    """A worker of a run, before its first step or where it was stopped."""
    worker = build_worker(asked, asked.data.data, folder, CPU, lambda _: False)
    restore(worker)
    return worker


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))


def test_a_run_begins_with_backbone_and_head_of_the_best_checkpoint(
    source: Path, evaluated_digits: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    asked = config(evaluated_digits, tmp_path, source, ema=0.9, head_init="torch")
    job = prepare_job(asked, said.append)
    best = best_of(source)
    assert f"from={source}: starts from source/{best.name}, backbone and head; not used: head_init=torch" in said
    claim(job.folder, job.config, job.data)
    stored = stored_config(job.folder)
    assert stored is not None
    assert (stored.model.from_run, stored.model.from_sha256) == (str(source), model_digest(best))
    worker = begun(job.config, job.folder)
    fresh = build_worker(job.config, evaluated_digits, tmp_path / "other", CPU, lambda _: False).model
    assert weights(fresh) != weights(worker.model)
    load_model(best, fresh)
    assert worker.average is not None
    assert weights(fresh) == weights(worker.model) == weights(worker.average)
    assert worker.optimizer.state_dict()["state"] == {}
    assert worker.state.epoch == 0


def test_the_command_of_a_run_that_has_begun_needs_the_other_no_more(
    source: Path, evaluated_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    flags = ["--from", source.name, "--data", str(evaluated_digits), "--name", "new", "--epochs", "1", "--workers", "1"]
    job = train_here(parse_run(flags, "train", "")[0].config)
    shutil.rmtree(source)
    again = prepare_job(parse_run(flags, "train", "")[0].config, lambda _: None)
    assert again.config == job.config
    assert begun(again.config, again.folder).state.epoch == 1


def train_on(rank: int, world_size: int, asked: TrainConfig, folder: Path) -> None:
    assert train(asked, asked.data.data, folder, CPU, lambda _: False)


@pytest.mark.cluster
def test_two_workers_begin_with_the_same_weights_as_one(source: Path, evaluated_digits: Path, tmp_path: Path) -> None:
    asked = config(evaluated_digits, tmp_path, source, reproducible=True, threads=1)
    run_distributed(train_on, 2, prepare_job(asked, print).config, tmp_path / "two")
    assert newest_files(tmp_path / "two") == newest_files(train_here(asked).folder)


def test_a_run_keeps_to_its_weights_though_the_other_went_on(
    source: Path, evaluated_digits: Path, tmp_path: Path
) -> None:
    job = prepare_job(config(evaluated_digits, tmp_path, source), lambda _: None)
    claim(job.folder, job.config, job.data)
    best, other = best_of(source), source / "checkpoints" / "0009-000000"
    shutil.copytree(best, other)
    state = json.loads((other / "state.json").read_text())
    state["history"][-1]["validation_mean_ap"] = 1.0  # now the best, with other weights
    digests = json.loads((other / "COMMITTED").read_text())
    (other / "state.json").write_text(json.dumps(state))
    tensors = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    (other / "COMMITTED").write_text(json.dumps(digests | {name: _sha256(other / name) for name in digests}))
    assert len(valid_checkpoints(source / "checkpoints")[0]) > 1
    assert best_of(source) == other
    fresh = begun(job.config, job.folder).model
    with pytest.raises(ValueError, match=r"started with from_sha256=\w+ \(asked: \w+\); give this one another --name"):
        prepare_job(job.config.override({"from_sha256": ""}), lambda _: None)
    expected = weights(fresh)
    load_model(best, fresh)
    assert weights(fresh) == expected
    shutil.rmtree(best)
    with pytest.raises(ValueError, match=r"from=.*source: has no weights of SHA-256 \w{12} any more.*another --name"):
        begun(job.config, job.folder)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def other_classes(data: DataFolder, *ids: str) -> DataFolder:
    old = data.vocabulary
    new = Vocabulary(
        class_ids=(*ids, *old.class_ids[len(ids) :]),
        names=old.names,
        train_positives=old.train_positives,
        train_negatives=old.train_negatives,
    )
    return dataclasses.replace(data, vocabulary=new)


def test_what_does_not_fit_is_refused_and_named(source: Path, evaluated_digits: Path, tmp_path: Path) -> None:
    data, asked = open_folder(evaluated_digits), config(evaluated_digits, tmp_path, source)
    ids = data.vocabulary.class_ids
    others = rf"its \d+ classes are not the \d+ of .*: 1 \({ids[0]}\) only in the run and 1 \(cat\) only in .*"
    with pytest.raises(ValueError, match=f"from=.*source: {others}; --weights takes a backbone alone"):
        with_weights_of_run(asked, other_classes(data, "cat"), print)
    with pytest.raises(ValueError, match="they are in another order"):
        with_weights_of_run(asked, other_classes(data, ids[1], ids[0]), print)
    with pytest.raises(ValueError, match="its backbone is small, and not resnet18; give --backbone small"):
        plan_job(asked.override({"backbone": "resnet18"}), print)
    with pytest.raises(ValueError, match=r"from=.*nowhere: neither the folder of a run nor one of its checkpoints"):
        plan_job(asked.override({"from_run": str(tmp_path / "nowhere")}), print)
    with pytest.raises(ValueError, match="from_sha256: there is no run it belongs to; give --from RUN too"):
        asked.override({"from_run": "", "from_sha256": "ab"}).check()


def test_the_plan_says_what_it_starts_from(source: Path, evaluated_digits: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plan_job(config(evaluated_digits, tmp_path, best_of(source)), said.append)
    assert any("starts from source/" in line for line in said)


def test_earlier_runs_started_from_none_and_a_configuration_file_takes_todays_best(source: Path) -> None:
    assert EARLIER["from_sha256"] == ""
    record = json.loads((source / "config.json").read_text())
    record["config"]["model"] |= {"from_run": "a", "from_sha256": "b"}
    (source / "config.json").write_text(json.dumps(record))
    asked, _ = parse_run(["--config", str(source / "config.json"), "--from", "c"], "train", "")
    assert (asked.config.model.from_run, asked.config.model.from_sha256) == ("c", "")
