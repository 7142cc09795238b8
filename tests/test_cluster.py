"""Training on a running Ray cluster of two nodes, joined by its address."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypaml.recipes import recipe
from raypaml.training.checkpoint import valid_checkpoints

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(600)]
RAY = Path(sys.executable).with_name("ray")
PORT = 26379
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone"}
"""Said to every process, so that a token in the user's home does not decide who may join."""
TRAIN = [sys.executable, "-m", "raypaml.train"]


def node(temp: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A Ray node with one CPU, in the foreground, so that it can be ended by its own process."""
    flags = [
        "--num-cpus=1",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    if "--head" in arguments:
        flags.append(f"--temp-dir={temp}")
    else:
        flags.remove("--include-dashboard=false")
    command = [str(RAY), "start", *arguments, *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=os.environ | TOKEN)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    temp = tempfile.mkdtemp(prefix="rp-")
    address = f"127.0.0.1:{PORT}"
    nodes = [node(temp, "--head", f"--port={PORT}")]
    try:
        wait_for_cpus(address, 1)
        nodes.append(node(temp, f"--address={address}"))
        wait_for_cpus(address, 2)
        yield address
    finally:
        for process in reversed(nodes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def wait_for_cpus(address: str, count: int) -> None:
    code = (
        "import sys, time\nfrom raypaml import cluster\n"
        "for _ in range(120):\n"
        "    try:\n"
        "        with cluster.join(sys.argv[1]):\n"
        "            if cluster.cpus() >= int(sys.argv[2]): sys.exit(0)\n"
        "    except ValueError: pass\n"
        "    time.sleep(1)\n"
        "sys.exit('no cluster')"
    )
    subprocess.run([sys.executable, "-c", code, address, str(count)], check=True, timeout=200, env=os.environ | TOKEN)


def test_two_nodes_train_the_weights_of_one_process(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny_digits), "--epochs", "2", "--warmup-epochs", "1", "--storage", str(tmp_path)]
    environment = os.environ | TOKEN | {"RAY_ADDRESS": cluster}
    subprocess.run([*TRAIN, *common, "--workers", "2", "--name", "two"], check=True, env=environment, timeout=300)
    subprocess.run([*TRAIN, *common, "--workers", "1", "--name", "one"], check=True, timeout=300)
    one, two = (valid_checkpoints(tmp_path / name / "checkpoints")[0][-1] for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_an_address_where_nothing_answers_is_one_line(tiny_digits: Path, tmp_path: Path) -> None:
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--address", "127.0.0.1:26111"]
    done = subprocess.run([*TRAIN, *flags], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "address=127.0.0.1:26111: no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_cluster_has_cpus_is_said(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    assert (recipe("digits").data.lanes or 0) >= 3
    flags = ["--data", str(tiny_digits), "--storage", str(tmp_path / "runs"), "--address", cluster, "--workers", "3"]
    done = subprocess.run(
        [*TRAIN, *flags], capture_output=True, text=True, timeout=200, check=False, env=os.environ | TOKEN
    )
    assert done.returncode == 2
    assert "workers=3: the cluster has 2 CPUs" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_search_spreads_its_trials_over_the_nodes(cluster: str, tiny_digits: Path, tmp_path: Path) -> None:
    short = ["--data", str(tiny_digits), "--epochs", "12", "--warmup-epochs", "1", "--storage", "here"]
    flags = ["--search", "delta_rel=1:4", "--share", "1", "--trials", "4", "--no-early-stop", "--name", "s"]
    done = subprocess.run(
        [sys.executable, "-m", "raypaml.tune", *short, *flags, "--address", cluster],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=tmp_path,  # not where the nodes were started
        env=os.environ | TOKEN,
    )
    assert done.returncode == 0, done.stderr
    assert "2 at once, each with 1 CPUs" in done.stderr
    assert done.stdout.count("finished") == 4
    found = [json.loads(path.read_text())["node"] for path in (tmp_path / "here" / "s" / "trials").glob("*/where.json")]
    assert (len(found), len(set(found))) == (4, 2)
