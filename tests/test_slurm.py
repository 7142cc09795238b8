"""clusters/slurm.sbatch: step by step with stand-ins, and on two nodes of a real Slurm where Debian's packages are."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raypaml.recipes import recipe
from tests.conftest import train_here
from tests.fault_table import Row, note
from tests.test_train import weights

SCRIPT = Path(__file__).parent.parent / "clusters" / "slurm.sbatch"
BIN = Path(sys.executable).parent

SCONTROL = """#!/bin/sh
case "$1 $2" in
  "show hostnames") echo localhost;;
  "show node") echo "NodeName=$3 NodeAddr=127.0.0.1 NodeHostName=$3";;
  *) echo "$@" >> "$NOTES/told-scontrol";;
esac
"""
SRUN = """#!/usr/bin/env bash
echo "$@" | tr '\\n' ' ' >> "$NOTES/told-srun"; echo >> "$NOTES/told-srun"
while case "$1" in -*) true;; *) false;; esac; do shift; done
for id in 0 1; do SLURM_PROCID=$id setsid "$@" & tasks="$tasks -$!"; done
trap 'kill -KILL -- $tasks; exit 1' TERM
wait
"""
RAY = """#!/bin/sh
echo "$@" >> "$NOTES/told-ray"
case "$1" in
  start)
    stat -c %a "$TEMP_OF_RAY" >> "$NOTES/mode"; touch "$NOTES/up"
    [ -n "$RAY_LEAVES" ] || sleep 60
    until [ -e "$NOTES/ready" ]; do sleep 0.1; done
    rm -f "$NOTES/up";;
  health-check) [ -e "$NOTES/up" ];;
esac
"""
SLEEP = """#!/bin/sh
case "$1" in 10) exec /bin/sleep 0.5;; *) exec /bin/sleep "$1";; esac
"""
RUN = """
import os, pathlib, signal, sys, time
notes = pathlib.Path(os.environ["NOTES"])
(notes / "run").write_text("\\n".join([os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_TOKEN"], *sys.argv[1:]]))
def save(*_):
    time.sleep(0.5)
    (notes / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(notes / "ready").touch()
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts the script as Slurm would on the first node, with stand-ins for Slurm's and Ray's commands."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "ray": RAY, "sleep": SLEEP}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.py").write_text(RUN)
    of_slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "SLURM_CPUS_PER_TASK": "3"}
    of_slurm["SLURM_JOB_NUM_NODES"] = "2"
    told = os.environ | of_slurm | {"NOTES": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told["COMMAND"] = f"{sys.executable} {tmp_path / 'run.py'}"
    started, flags = list[subprocess.Popen[bytes]](), ["--name", "a b"]

    def start(seconds: str) -> subprocess.Popen[bytes]:
        command = ["bash", str(SCRIPT), seconds, *flags]
        started.append(subprocess.Popen(command, env=told, stderr=subprocess.PIPE, start_new_session=True))
        return started[-1]

    start.told, start.flags = told, flags  # type: ignore[attr-defined]
    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    shutil.rmtree(f"/tmp/raypaml-{os.getpid()}", ignore_errors=True)


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ray_runs_on_every_node_in_a_private_folder_and_goes_with_the_job(
    job: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    done = job("2")
    _, said = done.communicate(timeout=60)
    assert done.returncode == 3, said
    address, token, *flags = (tmp_path / "run").read_text().split("\n")
    port = 20000 + os.getpid() % 6000
    assert (address, flags) == (f"127.0.0.1:{port}", ["2", "--name", "a b"])
    assert len(token) == 64
    starts = sorted(line for line in (tmp_path / "told-ray").read_text().splitlines() if line.startswith("start"))
    assert starts[0].startswith(f"start --address=127.0.0.1:{port} --block --num-cpus=3")
    assert starts[1].startswith(f"start --head --node-ip-address=127.0.0.1 --port={port} --include-dashboard=false")
    assert f"--ray-client-server-port={port + 6000}" in starts[1]  # out of those of workers, 10002 to 19999
    assert token not in " ".join(starts)  # others may read command lines
    assert (tmp_path / "mode").read_text().split() == ["700", "700"]
    assert not Path(f"/tmp/raypaml-{os.getpid()}").exists()
    assert not (tmp_path / "told-scontrol").exists()
    # an sbatch with other tasks or an environment of its own would hand them on: two Rays a node, or none
    each = "--export=ALL --nodes=2 --ntasks=2 --ntasks-per-node=1 "
    asked, *of_ray = (tmp_path / "told-srun").read_text().splitlines()
    assert "--relative=1 getent" in asked
    assert all(line.startswith(each) for line in of_ray), of_ray


def test_a_name_that_stands_for_loopback_is_looked_up_on_another_node(
    job: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Debian's /etc/hosts gives a machine's own name to 127.0.1.1."""
    (tmp_path / "getent").write_text(
        '#!/bin/sh\n[ "$SLURM_PROCID" ] && echo 192.0.2.9 STREAM || echo 127.0.1.1 STREAM\n'
    )
    (tmp_path / "getent").chmod(0o755)
    job("0").communicate(timeout=60)
    assert (tmp_path / "run").read_text().startswith("192.0.2.9:")


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_before_the_limit_the_run_saves_and_the_job_is_queued_again(
    number: signal.Signals, queued: bool, job: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A job that is cancelled is not queued again."""
    running = job("60")
    wait_for((tmp_path / "ready").exists)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143, said
    assert (tmp_path / "saved").exists()
    told = tmp_path / "told-scontrol"
    assert told.exists() == queued
    assert not queued or told.read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize(("restarts", "queued"), [("0", True), ("50", False)])
def test_where_ray_is_taken_away_the_job_is_queued_again_until_that_is_no_accident(
    restarts: str,
    queued: bool,
    job: Callable[[str], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """So it is when a job is preempted: Slurm sends SIGTERM to Ray's processes, not to the script."""
    job.told.update({"RAY_LEAVES": "when the run is ready", "SLURM_RESTART_COUNT": restarts})  # type: ignore[attr-defined]
    failed = job("3")
    failed.communicate(timeout=60)
    assert failed.returncode == 3
    assert (tmp_path / "told-scontrol").exists() == queued


def test_a_run_without_a_name_is_not_queued_again(
    job: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """It would begin anew before every time limit."""
    job.flags[:] = []  # type: ignore[attr-defined]
    running = job("60")
    wait_for((tmp_path / "ready").exists)
    running.send_signal(signal.SIGUSR1)
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert not (tmp_path / "told-scontrol").exists()


@pytest.mark.parametrize("srun", ["exit 1", "exec sleep 60"])
def test_a_ray_that_does_not_start_ends_the_job_with_a_line(
    srun: str, job: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Also where the Rays of the other nodes wait for it."""
    job.told["PATIENCE"] = "2"  # type: ignore[attr-defined]
    (tmp_path / "srun").write_text(f'#!/bin/sh\ncase "$*" in *getent*) echo 127.0.0.1;; *) {srun};; esac\n')
    failed = job("0")
    _, said = failed.communicate(timeout=60)
    assert failed.returncode == 1
    assert said.decode().splitlines()[-1] == "Ray did not start on localhost"


# --- A real Slurm -----------------------------------------------------------------------------------------------------

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel", "squeue")
CONFIGURATION = """
ClusterName=raypaml
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=20
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_of_n0} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_of_n1} CPUs=1
PartitionName=low Nodes=n0,n1 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n0,n1 PriorityTier=10 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A Slurm of two nodes on this machine; calls a command of it and returns what it prints."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing or os.geteuid():
        pytest.skip(f"needs root, and of Debian's slurmctld, slurmd, slurm-client, munge: {', '.join(missing)}")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    port, port_of_n0, port_of_n1 = free_ports(3)
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0], folder=folder, port=port, port_of_n0=port_of_n0, port_of_n1=port_of_n1
    )
    (folder / "slurm.conf").write_text(text)
    told = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin",
        "PYTHONPATH": str(SCRIPT.parent.parent),
    }
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid", "log-file": "munge.log"}
    munge = [f"--{flag}={folder / name}" for flag, name in (files | {"seed-file": "munge.seed"}).items()]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", name] for name in ("n0", "n1")]
    running = list[subprocess.Popen[bytes]]()

    def call(command: str) -> str:
        done = subprocess.run(command, shell=True, env=told, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout.strip()

    try:
        for daemon in daemons:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running.append(subprocess.Popen(daemon, env=told, **quiet))  # type: ignore[call-overload]
            wait_for((folder / "munge.sock").exists)
        wait_for(lambda: call("sinfo -h -o %T || true") == "idle")
        yield call
        call("for job in $(squeue -h -o %i); do scancel --signal=KILL --full $job; scancel $job; done || true")
        wait_for(lambda: not call("squeue -h"))
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_job_goes_on_after_its_time_limit_and_after_a_preemption(
    slurm: Callable[[str], str], tiny_digits: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 60, "warmup_epochs": 1, "delta_rel": 0.02, "data": str(tiny_digits)}
    alone = train_here(recipe("digits").override(settings | {"storage": str(tmp_path / "alone"), "workers": 1})).folder
    run = tmp_path / "runs" / "first"
    flags = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())
    flags += f" --storage={run.parent} --name=first --workers=2 --device=cpu"
    environment = "--export=PATH,PYTHONPATH,HOME,OMP_NUM_THREADS"  # srun would hand these on alone
    job = slurm(f"sbatch --parsable {environment} --nodes=2 --cpus-per-task=1 {SCRIPT} digits {flags}")

    def state() -> str:
        return slurm(f"scontrol show job {job} | grep -o 'JobState=[A-Z]*'").removeprefix("JobState=")

    def epochs() -> int:
        assert state() != "FAILED"
        records = run / "metrics.jsonl"
        return records.read_text().count("\n") if records.is_file() else 0

    def queued_again(times: int) -> None:
        wait_for(lambda: f"Restarts={times} " in slurm(f"scontrol show job {job}") and state() == "PENDING", 300)
        # Slurm would wait for two minutes; within a second it refuses the job, whose credential it has just revoked.
        slurm(f"scontrol update jobid={job} StartTime=now+5")

    wait_for(lambda: epochs() >= 2, 300)
    began = time.monotonic()
    slurm(f"scancel --batch --signal=USR1 {job}")
    queued_again(1)
    note(Row("Slurm: notice of the time limit: a checkpoint", time.monotonic() - began, "saved"))
    saved = epochs()
    wait_for(lambda: epochs() >= saved + 2, 300)
    slurm("sbatch --partition=high --nodes=2 --wrap 'sleep 1'")
    queued_again(2)
    wait_for(lambda: state() == "COMPLETED", 300)
    log = (tmp_path / f"raypaml-{job}.log").read_text()
    assert log.count("continues from epoch") == 2, log
    assert weights(run) == weights(alone)
