"""`python -m raypaml.evaluate`: the same parts from any number of workers, after any interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raypaml import evaluate
from raypaml.api import predicted_split
from raypaml.cli import run_command
from raypaml.data.data_folder import open_folder
from raypaml.evaluation import prediction_plan
from raypaml.evaluation.entries import spilled
from raypaml.evaluation.parts import open_set
from raypaml.labels import UNOBSERVED

FIRST_PART = """
import sys, time
from raypaml import evaluate
from raypaml.api import predicted_split
alone = predicted_split.predict_part_alone
def held(plan, part, device):
    if part.part == 1:
        time.sleep(1000)
    return alone(plan, part, device)
predicted_split.predict_part_alone = held
evaluate.main(sys.argv[1:])
"""
"""The command, held before its second part."""
NAMES = ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """An evaluation in this process sets it to one thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(trained: tuple[Path, str]) -> Path:
    return trained[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "vocabulary.csv"}


def refuse(argv: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: evaluate.main(argv), "python -m raypaml.evaluate")
    said = capfd.readouterr().err
    assert stopped.value.code == 2
    assert said.count("\n") == 1
    assert message in said


def test_training_leaves_the_parts_that_the_command_writes(run: Path, tmp_path: Path) -> None:
    assert sorted(contents(run / "predictions" / "test")) == NAMES
    assert evaluate.main([str(run), "--out", str(tmp_path)]) == 0
    assert contents(tmp_path) == contents(run / "predictions" / "test")


def test_a_finished_evaluation_is_not_done_again(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "predictions" / "test").glob("*.parquet")}
    assert evaluate.main([str(run)]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(run / "predictions" / "test")
    assert "2 of 2 parts are there already" in err
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped bit", "empty"])
def test_only_what_is_missing_or_damaged_is_predicted_again(
    damage: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = contents(run / "predictions" / "test")
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    kept = (tmp_path / NAMES[0]).stat().st_mtime_ns
    bad, content = tmp_path / NAMES[1], bytearray(whole[NAMES[1]])
    content[100] ^= 1
    bad.write_bytes({"truncated": whole[NAMES[1]][:-50], "flipped bit": content}.get(damage, b""))
    if damage == "missing":
        bad.unlink()
    (tmp_path / "part-00001-of-00002.unfinished").write_bytes(b"half")
    evaluate.main([str(run), "--out", str(tmp_path)])
    assert "1 of 2 parts are there already" in capfd.readouterr().err
    assert contents(tmp_path) == whole
    assert (tmp_path / NAMES[0]).stat().st_mtime_ns == kept


@pytest.mark.timeout(120)
def test_killed_and_given_again_gives_the_same_parts(run: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", FIRST_PART, str(run), "--out", str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / NAMES[0]).exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / NAMES[1]).exists()
    evaluate.main([str(run), "--out", str(tmp_path)])
    assert contents(tmp_path) == contents(run / "predictions" / "test")


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(work: object, part: prediction_plan.PredictionPart, device: str) -> int:
        if part.part == 1:
            raise KeyboardInterrupt
        return alone(work, part, device)

    alone = prediction_plan.predict_part_alone
    monkeypatch.setattr(predicted_split, "predict_part_alone", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: evaluate.main([str(run), "--out", str(tmp_path)]), "python -m raypaml.evaluate")
    assert stopped.value.code == 130
    assert "stopped; the same command goes on" in capfd.readouterr().err
    assert sorted(contents(tmp_path)) == NAMES[:1]


@pytest.mark.ray
def test_two_ray_workers_write_the_parts_of_one_process(run: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "raypaml.evaluate", str(run), "--out", str(tmp_path), "--workers", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(run / "predictions" / "test")


def test_unobserved_entries_are_written_on_request(run: Path, evaluated_digits: Path) -> None:
    evaluate.main([str(run), "--split", "train", "--unobserved"])
    predictions = open_set(run / "predictions" / "train-unobserved")
    labels = open_folder(evaluated_digits).splits["train"].labels(np.arange(96))
    assert (labels == UNOBSERVED).any()
    with spilled(predictions) as found:
        assert found.tally.sum(0).tolist() == [int((labels == value).sum()) for value in (1, 0, UNOBSERVED)]


def test_parts_of_all_entries_are_smaller_where_there_are_many_classes_and_hold_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,096 images of 5,000 classes took 4 GB in each process."""
    entries = {}
    for name, most in (("few", 8_000_000), ("many", 1)):
        monkeypatch.setattr(prediction_plan, "_MOST_ENTRIES", most)
        evaluate.main([str(run), "--unobserved", "--out", str(tmp_path / name)])
        with spilled(open_set(tmp_path / name)) as found:
            entries[name] = [[(e.class_index, e.image, e.label, e.P, e.N) for e in found.buckets()], found.keys]
    assert len(prediction_plan.plan_asked(run, prediction_plan.SplitRequest(out=str(tmp_path / "observed"))).parts) == 2
    few, many = (len(list((tmp_path / name).glob("part-*"))) for name in entries)
    assert few < many
    assert entries["few"][1].equals(entries["many"][1])
    for ours, theirs in zip(entries["few"][0], entries["many"][0], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_checkpoint_may_be_named(run: Path) -> None:
    first = sorted((run / "checkpoints").iterdir())[0]
    assert evaluate.main([str(first), "--split", "validation"]) == 0
    assert open_set(run / "predictions" / f"validation-{first.name}").samples == 40


# --- Refused --------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_evaluation_is_left_alone(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "predictions" / "test" / NAMES[0], tmp_path)
    before = contents(tmp_path)
    argv = [str(run), "--split", "validation", "--out", str(tmp_path)]
    refuse(
        argv,
        "predictions of another checkpoint, data, classes or split, or of another version; give another --out",
        capfd,
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "tset"], "split='tset': the data set has train, validation, test"),
        (["--workers", "0"], "workers=0: must be at least 1"),
        (["--worker", "2"], "did you mean --workers?"),
        (["--data", "nowhere"], "no such folder"),
        (["--data", "digits:verify"], "expected digits"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse([str(run), "--out", str(tmp_path / "out"), *flags], message, capfd)
    assert not (tmp_path / "out").exists()


def test_what_is_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refuse([str(tmp_path)], "neither the folder of a run nor one of its checkpoints", capfd)


def test_data_of_another_vocabulary(
    run: Path, evaluated_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = tmp_path / "run" / "config.json"
    digest = open_folder(evaluated_digits).vocabulary.digest
    record.write_text(record.read_text().replace(digest, "0" * 64))
    refuse([str(tmp_path / "run"), "--data", str(evaluated_digits)], "another vocabulary (digest", capfd)


def test_a_damaged_checkpoint(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    first = sorted((tmp_path / "run" / "checkpoints").iterdir())[0]
    (first / "state.json").write_text("{}")
    refuse([str(first)], "a damaged checkpoint", capfd)
