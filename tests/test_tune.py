"""`python -m raypaml.tune` as a user runs it: real Ray, trials beside each other, a kill in the middle."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raypaml import train as command
from raypaml.recipes import recipe
from raypaml.training.loop import train
from raypaml.training.run_folder import claim

SHORT = {"epochs": 4, "warmup_epochs": 2, "delta_rel": 2.0}
GRID = "delta_rel=2|4,lr=0.004|1e30"  # the second learning rate leads to logits that are not finite


def tune(data: Path, storage: Path, *flags: str) -> list[str]:
    short = [text for name, value in SHORT.items() for text in ("--" + name.replace("_", "-"), str(value))]
    where = ["--data", str(data), "--storage", str(storage), "--name", "s"]
    return [sys.executable, "-m", "raypaml.tune", *where, *short, *flags]


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def alone(data: Path, storage: Path, delta_rel: float) -> tuple[float, float]:
    """Validation and test mAP of a trial trained here, without Ray and without sharing."""
    torch.set_num_threads(1)
    values = SHORT | {"delta_rel": delta_rel, "workers": 1, "data": str(data), "storage": str(storage), "name": "a"}
    job = command.prepare(recipe("digits").override(values | {"name": f"{delta_rel}"}), lambda _: None)
    claim(job.folder, job.config, job.data)
    train(job.config, job.data.path, job.folder, torch.device("cpu"), lambda _: False)
    result = command.conclude(job)
    return result["validation_mean_ap"], result["mean_ap"]


def wait_for(condition: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_killed_and_given_again_it_leaves_the_table_of_an_undisturbed_search(tiny_digits: Path, tmp_path: Path) -> None:
    asked = tune(tiny_digits, tmp_path, "--search", GRID, "--searcher", "grid", "--no-early-stop")
    trials = tmp_path / "s" / "trials"
    first = trials / "delta_rel=2,lr=0.004" / "result.json"
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(first, process)
    process.kill()
    _, said = process.communicate()
    assert "2 at once, each with 1 CPUs" in said
    both = [line for line in said.splitlines() if line.endswith((": starts", "finished")) or "failed" in line]
    assert [line.endswith(": starts") for line in both[:2]] == [True, True]
    before = first.stat().st_mtime_ns

    again = subprocess.run(asked, capture_output=True, text=True, timeout=800, check=False)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before
    assert "Traceback" not in again.stderr
    found = rows(tmp_path / "s")
    assert [(row["trial"], row["state"]) for row in found] == [
        ("delta_rel=2,lr=0.004", "finished"),
        ("delta_rel=2,lr=1e+30", "failed"),
        ("delta_rel=4,lr=0.004", "finished"),
        ("delta_rel=4,lr=1e+30", "failed"),
    ]
    for row in found[::2]:
        scores = float(row["validation_mean_ap"]), float(row["test_mean_ap"])
        assert scores == alone(tiny_digits, tmp_path / "alone", float(row["delta_rel"]))
    assert re.search(r"rank 0: rank 0, epoch \d+, step \d+: logits are not finite", found[1]["error"])
    assert found[1]["error"] in again.stdout
    assert int(found[2]["epochs_shared"]) == 2
    best = json.loads((tmp_path / "s" / "best.json").read_text())
    assert best["found"]["trial"] in ("delta_rel=2,lr=0.004", "delta_rel=4,lr=0.004")
    assert (tmp_path / "s" / "report.html").is_file()


def test_errors_before_the_start_are_one_line(tiny_digits: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        tune(tiny_digits, tmp_path, "--search", "alhpa"), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean alpha?" in done.stderr
    assert not (tmp_path / "s").exists()


def test_suggest_says_what_it_found_and_starts_nothing(tiny_digits: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        tune(tiny_digits, tmp_path, "--suggest"), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"missed positives: \d\.\d+% of the unobserved training entries", done.stdout)
    assert "after 2 rejecting epochs" in done.stdout
    assert not (tmp_path / "s").exists()
