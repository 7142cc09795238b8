"""What a user can get wrong: one clear message, exit code 2, before any worker starts and nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raypaml import train
from raypaml.cli import run_command


def asked(data: Path | str, storage: Path, *flags: str) -> list[str]:
    return ["--data", str(data), "--storage", str(storage / "runs"), "--name", "x", *flags]


def damaged(tiny_digits: Path, tmp_path: Path, damage: str) -> Path:
    data = tmp_path / "data"
    shutil.copytree(tiny_digits, data)
    if damage == "empty":
        shutil.rmtree(data)
        data.mkdir()
    elif damage == "no index":
        for path in data.glob("*.arrow"):
            path.unlink()
    elif damage == "other vocabulary":
        path = data / "vocabulary.csv"
        path.write_text(path.read_text().replace("red_0,red 0", "red_00,red 0"))
    elif damage == "no shard":
        (data / "train-000000.tar").unlink()
    return data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("empty", "empty folder"),
        ("no index", "shards without an index"),
        ("other vocabulary", "made with another vocabulary"),
        ("no shard", "train-000000.tar: missing"),
    ],
)
def test_data_that_does_not_hold_together(
    damage: str, message: str, tiny_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(asked(damaged(tiny_digits, tmp_path, damage), tmp_path), message, tmp_path, capfd)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "0.5"], "alpha=0.5: must be at least 1"),
        (["--delta-rel", "10", "--warmup-epochs", "1", "--epochs", "12"], "keep delta_rel * 11 <= 100"),
        (["--workers", "5"], "this run has 4 lanes"),
        (["--backbone", "resnet19"], "did you mean 'resnet1"),
        (["--weights", "nowhere.safetensors"], "no such file"),
        (["--epochs", "0"], "epochs=0: must be at least 1"),
        (["--lanes", "5"], "lanes=5: must divide global_batch_size=32"),
        (["--data", "/no/such/folder"], "no such folder"),
        (["--data", "digits:verifed"], "HIDING one of single_positive, verified"),
        (["--aplha", "3"], "did you mean --alpha?"),
        (["--alpha", "five"], "argument --alpha: invalid float value: 'five'"),
        (["--scheme", "ll-r"], "argument --scheme: invalid choice: 'll-r'"),
        (["digit"], "did you mean 'digits'?"),
    ],
)
def test_wrong_values(
    flags: list[str], message: str, tiny_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(asked(tiny_digits, tmp_path, *flags), message, tmp_path, capfd)


def test_weights_of_another_architecture(tiny_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    refuse(asked(tiny_digits, tmp_path, "--weights", str(tmp_path / "other.pth")), "another network", tmp_path, capfd)


def refuse(argv: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: train.main(argv), "python -m raypaml.train")
    said = capfd.readouterr()
    assert stopped.value.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1, said.err
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_from_the_shell_it_is_exit_code_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raypaml.train", "--data", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_help_is_grouped_and_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['train', '--help']\n"
        "try: runpy.run_module('raypaml.train', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for heading in ("Data:", "Model:", "Loss and rejection:", "Optimisation:", "Run:"):
        assert heading in done.stdout
    assert "--delta-rel X" in done.stdout
    assert "[0.25]" in done.stdout  # the recipe's value
