"""Ray programs of strangers: raypaml beside their Ray, as the loop of their Trainer and Tuner, on nodes without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from raypaml.cluster import private_ray, shipping
from raypaml.cluster.as_loop import _configuration
from raypaml.cluster.shipping import OURS, Missing, runtime_env, what_is_missing
from raypaml.runs.ranks import Ranks
from tests.two_nodes import TOKEN, two_nodes

CHECKOUT = Path(__file__).parent.parent
PORT = 26479


def test_what_nodes_lack_is_named_and_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "modules_named", lambda: "tests.processes,json")

    def nodes(function: object, modules: tuple[str, ...], needed: tuple[str, ...]) -> list[object]:
        here = function(modules, needed)  # type: ignore[operator]
        return [here, ("bare", "", ("tests",), ()), ("old", "0.0.9", (), ()), ("poor", "", (), ("torch",))]

    missing = what_is_missing(nodes)
    assert [str(node) for node in missing] == [
        "bare has no raypaml, no tests",
        f"old has raypaml 0.0.9 instead of {OURS}",
        "poor has no raypaml, no torch",
    ]
    sent = runtime_env(missing[:2])["py_modules"]
    assert sent == [str(CHECKOUT / "raypaml"), str(CHECKOUT / "tests")]
    with pytest.raises(ValueError, match=f"poor has no raypaml, no torch: install raypaml=={OURS} with its depend"):
        runtime_env(missing)
    assert not Missing("here", OURS, (), ("torch",)).is_complete


def test_settings_of_a_worker_are_typed_as_those_of_run_train(tmp_path: Path) -> None:
    """A path was a TypeError, and a value of numpy, such as a searcher's, no JSON."""
    here = Ranks.here(torch.device("cpu"))
    config = _configuration("digits", {"storage": tmp_path, "epochs": np.int64(3), "lr": 1}, here)
    assert (config.run.storage, type(config.optim.epochs), type(config.optim.lr)) == (str(tmp_path), int, float)
    with pytest.raises(ValueError, match=r"^epochs='3': must be int, not str$"):
        _configuration("digits", {"epochs": "3"}, here)


def example() -> str:
    """The example of clusters/README.md."""
    page = (CHECKOUT / "clusters" / "README.md").read_text()
    return next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "train_in_worker" in code)


BEFORE = """
import os, signal, sys
import ray
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
@ray.remote(num_cpus=0)
class Theirs:
    def answer(self): return os.environ.get("RAY_CHDIR_TO_TRIAL_DIR")
theirs = Theirs.remote()
def state():
    rays = {name: value for name, value in os.environ.items() if name.startswith(("RAY", "TUNE", "GLOO", "NCCL"))}
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), rays
before = state()
"""
BESIDE = """
import raypaml.train
flags = "digits --workers 2 --epochs 1 --warmup-epochs 1 --delta-rel 0 --name beside --device cpu".split()
assert raypaml.train.main([*flags, "--storage", "runs", "--data", DATA]) == 0
assert ray.is_initialized() and ray.get(theirs.answer.remote()) is None
assert before == state(), "left as it was"
try:
    raypaml.train.main([*flags, "--address", "127.0.0.1:1", "--storage", "runs", "--data", DATA, "--name", "other"])
except ValueError as error:
    print("REFUSED", error)
"""
AFTER = """
import json
@ray.remote(num_cpus=1)
def within():
    try: raypaml.train.main([*flags, "--storage", STORAGE, "--data", DATA, "--name", "within", "--workers", "3"])
    except ValueError as error: return str(error)
@ray.remote(num_cpus=1)
def inside():
    return raypaml.train.main([*flags, "--storage", STORAGE, "--data", DATA, "--name", "inside", "--workers", "1"])
print(json.dumps({
    "inside": ray.get(inside.remote()),
    "trainer": trained.metrics, "kept": trained.checkpoint.path, "within": ray.get(within.remote()),
    "trials": [[trial.config["alpha"], trial.metrics] for trial in results], "errors": len(results.errors),
}, default=str))
assert ray.get(theirs.answer.remote()) is None
"""


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(500)  # more than its program may take
def test_beside_their_ray_and_as_their_loop(tiny_digits: Path, tmp_path: Path) -> None:
    code = (
        example()
        .replace('"/shared/runs"', "STORAGE")
        .replace('"/shared/ray"', 'STORAGE + "-ray"')
        .replace('"digits",', '"digits", data=DATA,')
    )
    code = code.replace('"epochs": 3', '"epochs": 1, "warmup_epochs": 1, "delta_rel": 0.0')
    assert code.count("STORAGE") == 3
    values = f"DATA, STORAGE = {str(tiny_digits)!r}, {str(tmp_path / 'shared')!r}\n"
    (tmp_path / "program.py").write_text(BEFORE + values + BESIDE + code + AFTER)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rp") as temp:
        run = subprocess.run(
            [sys.executable, "program.py", temp],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            | {
                "PYTHONPATH": str(CHECKOUT),
                "RAY_AUTH_MODE": "disabled",
                "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "99",
            },
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    assert (tmp_path / "runs" / "beside" / "result.json").is_file(), "relative paths mean what they mean without Ray"
    assert "REFUSED address=127.0.0.1:1: this program has initialised Ray at " in run.stdout
    seen = json.loads(run.stdout.strip().splitlines()[-1])
    assert seen["errors"] == 0
    assert [alpha for alpha, _ in seen["trials"]] == [1.0, 2.0, 5.0, 8.0]
    shared = tmp_path / "shared"
    results = [json.loads(path.read_text()) for path in shared.glob("*/result.json")]
    assert len(results) == 6, "four trials, the trainer, and that of a task"
    for metrics in [seen["trainer"], *(metrics for _, metrics in seen["trials"])]:
        assert metrics["epoch"] == 0
        assert 0 < metrics["validation_mean_ap"] <= 1
    assert list(Path(seen["kept"]).glob("*.safetensors")), "the checkpoint that Ray was given"
    assert seen["inside"] == 0
    assert seen["within"].startswith("workers=3: the cluster has 2 CPUs")


HIDE = """
import pathlib, sys
def hidden(path):  # what Ray brings lies in its own folder
    return (pathlib.Path(path) / "raypaml" / "__init__.py").is_file() and "runtime_resources" not in path
sys.path[:] = [path for path in sys.path if not hidden(path)]
"""


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_nodes_without_raypaml_are_sent_it(tiny_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a program that a worker of a private Ray has started, with whose token nobody may join."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    inherited = os.environ | private_ray._variables(tmp_path) | {"PYTHONPATH": str(CHECKOUT)}
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "sitecustomize.py").write_text(HIDE)
    flags = ["digits", "--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--workers", "2"]
    flags += ["--device", "cpu", "--epochs", "1", "--warmup-epochs", "1", "--delta-rel", "0"]
    with two_nodes(PORT, PYTHONPATH=str(tmp_path / "nodes")) as up:
        done = [
            subprocess.run(
                [sys.executable, "-m", f"raypaml.{command}", *flags, "--address", up.address],
                cwd=tmp_path,
                env={name: value for name, value in inherited.items() if value is not None},
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            for command in ("doctor", "train")
        ]
    doctor, train = done
    assert "has no raypaml" in doctor.stdout, doctor.stdout + doctor.stderr
    assert "Traceback" not in doctor.stderr
    assert train.returncode == 0, train.stderr
    assert "has no raypaml: raypaml is sent to the nodes with this job" in train.stderr
    assert "Report:" in train.stdout
