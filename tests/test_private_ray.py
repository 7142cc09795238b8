"""The private Ray of real processes: its folder, who reaches it, how it ends, and what is said if it does not start."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray._common.utils import try_to_create_directory
from ray._private import services

from raypaml.cluster import lost_ray, private_ray, ray_variables, short_folder, waiting

LONG = "a-folder-for-this-job-as-schedulers-and-macs-make-them-0123456789"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", None)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rp") as short:
        monkeypatch.setattr(short_folder, "_places", lambda: [Path(short)])
        yield Path(short)


def test_the_folder_is_ours_alone_and_goes(place: Path) -> None:
    with short_folder.short_folder() as folder:
        assert folder.parent == place
        assert folder.stat().st_mode == 0o40700
        assert len(f"{folder}{short_folder.INSIDE}") <= short_folder.LONGEST_SOCKET
    assert not folder.exists()


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LONG).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / LONG))
    with short_folder.short_folder() as folder:
        assert folder.parent == Path("/tmp")
    monkeypatch.setattr(short_folder, "_places", lambda: [tmp_path / LONG, Path("/none")])
    with pytest.raises(ValueError, match="is longer than 22 bytes; /none: No such file or directory; set TMPDIR to a"):
        short_folder._made(short_folder._places())


def test_what_a_killed_owner_left_is_swept_and_nothing_else(place: Path) -> None:
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom raypaml.cluster import short_folder\n"
        "short_folder._places = lambda: [Path(sys.argv[1])]\n"
        "with short_folder.short_folder() as folder:\n"
        "    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, place], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    killed, alive = (Path(process.stdout.readline().strip()) for process in started)
    started[0].kill()
    started[0].communicate()
    others = place / "raypaml-others"  # writable by a group: somebody else may have made what is in it
    others.mkdir(0o770)
    others.chmod(0o770)
    (others / short_folder.LOCK).touch()
    unlocked = place / "raypaml-being-made"
    unlocked.mkdir(0o700)
    (place / "raypaml-link").symlink_to(others)
    short_folder.sweep_deserted(place)
    assert {path.name for path in place.iterdir()} == {alive.name, others.name, unlocked.name, "raypaml-link"}
    assert not killed.exists()
    started[1].communicate("")
    assert not alive.exists()


def test_what_a_lost_ray_still_writes_is_swept_later(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def disturbed(folder: Path, **options: bool) -> None:
        remove(folder, **options)
        (folder / "session" / "logs").mkdir(parents=True)

    with short_folder.short_folder() as left:
        (left / short_folder.OF_RAY).mkdir()
        monkeypatch.setattr("shutil.rmtree", disturbed)
    assert (left / short_folder.OF_RAY).exists()
    monkeypatch.setattr("shutil.rmtree", remove)
    short_folder.sweep_deserted(place)
    assert not left.exists()


def test_a_folder_is_never_seen_unlocked(place: Path) -> None:
    with short_folder.short_folder() as folder:
        lock = os.open(folder / short_folder.LOCK, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        assert not (folder / "new").exists()


def test_ray_opens_its_own_folder_to_all_and_not_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def init(_temp_dir: str, **_: object) -> None:
        try_to_create_directory(_temp_dir)  # as Ray does
        modes.extend(oct(folder.stat().st_mode) for folder in (Path(_temp_dir), *place.iterdir()))

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(lost_ray, "_places", lambda _: [])
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with private_ray.private_ray(2):
        assert modes == ["0o40777", "0o40700"]


@pytest.mark.parametrize("error", [RuntimeError("no room\nat all"), SystemExit("no room")])
def test_whatever_ray_raises_is_one_line(error: BaseException, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", MagicMock(side_effect=error))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(ValueError, match=r"^Ray does not start on this machine: no room$"), private_ray.private_ray(2):
        raise AssertionError("not started")
    assert not list(place.iterdir())


def test_a_start_that_never_ends_is_said_and_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ray.init does where no process registers: it waits in C++, and a handler of C++ is over Python's."""
    forever, taken = threading.Event(), MagicMock()
    monkeypatch.setattr("ray.init", lambda **_: forever.wait(20))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(private_ray, "retake_sigterm", taken)
    monkeypatch.setattr(private_ray, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "WORDS_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "LIMIT_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^Ray has not started within 0:00; .*"), private_ray.private_ray(2):
        raise AssertionError("not started")
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == "waiting for Ray to start\n"
    assert taken.called
    assert not list(place.iterdir())
    forever.set()


def test_ray_init_does_not_wait_for_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for ever, with Python's lock, where none registers."""
    monkeypatch.delenv(private_ray.PRIVATE, raising=False)
    assert private_ray._variables(tmp_path)["RAY_prestart_worker_first_driver"] == "0"


class Nodes:
    """Stands for a node of Ray, which is found (`services.get_node`) when it is asked for the third time."""

    def __init__(self, dead: bool) -> None:
        self.asked, self.dead = 0, dead

    def get_node(self, *_: object) -> str:
        self.asked += 1
        if self.asked < 3:
            raise RuntimeError("not there yet")
        return "the node"

    def dead_processes(self) -> list[str]:
        return ["raylet"] if self.dead else []


@pytest.mark.parametrize(("dead", "over", "seconds"), [(True, False, 9.0), (False, True, 9.0), (False, False, 0.0)])
def test_a_slow_start_is_waited_for_and_a_vain_one_is_not(
    dead: bool, over: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Nodes(dead=False)
    monkeypatch.setattr(services, "get_node", slow.get_node)
    with private_ray._patiently([slow], threading.Event()):
        assert services.get_node("address", "id") == "the node"
    vain, given_up = Nodes(dead), threading.Event()
    monkeypatch.setattr(services, "get_node", vain.get_node)
    monkeypatch.setattr(private_ray, "START_SECONDS", seconds)
    if over:
        given_up.set()
    with private_ray._patiently([vain], given_up), pytest.raises(RuntimeError, match="not there yet"):
        services.get_node("address", "id")
    assert services.get_node.__self__ is vain  # Ray's own again


def test_why_ray_does_not_start_is_its_last_error_and_no_other_line(tmp_path: Path) -> None:
    logs = tmp_path / "session_2026-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text("[2026-11-26 09:53:03,254 I 1 1] (gcs_server) x.cc:1: begins\n- 0 in all\n")
    assert not private_ray._said_last(tmp_path)
    error = "[2026-11-26 09:53:03,254 C 7 7] (raylet) main.cc:98: no room"
    (logs / "raylet.err").write_text(f"{error}\n*** StackTrace Information ***\n/ray/raylet(+0x263cb7) [0x5560]\n")
    assert private_ray._said_last(tmp_path) == f" (raylet.err: {error})"


def test_variables_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    monkeypatch.delenv("RAY_CHDIR_TO_TRIAL_DIR", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "7")
    before = dict(os.environ)
    with ray_variables(RAY_AUTH_TOKEN=None, RAY_AUTH_MODE="token"):
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
        assert os.environ["RAY_worker_niceness"] == "7"  # noqa: SIM112
    assert dict(os.environ) == before


def test_variables_of_threads_that_overlap_hold_until_the_last_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one program, of which the first to begin is the first to end."""
    monkeypatch.delenv("RAY_CHDIR_TO_TRIAL_DIR", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "theirs")
    before = dict(os.environ)
    first, second = ray_variables(RAY_AUTH_MODE="token"), ray_variables()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "theirs"
    with ray_variables(RAY_AUTH_MODE="1"), ray_variables(RAY_AUTH_MODE=None):
        assert "RAY_AUTH_MODE" not in os.environ
    second.__exit__(None, None, None)
    assert dict(os.environ) == before


# --- Real Ray ---------------------------------------------------------------------------------------------------------

LOOK = """
import json, os, sys
import ray
from raypaml.cluster.private_ray import private_ray
from raypaml.cluster.process_group import NodeAddressConfig
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
import psutil

def listening(process):
    try:
        return [(process.name(), c.laddr.ip) for c in process.net_connections("inet") if c.status == "LISTEN"]
    except psutil.NoSuchProcess:  # it has ended since
        return []

def sockets():
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return [found for process in ours for found in listening(process)]

def loop():
    import torch.distributed as dist
    dist.barrier()
    mine = psutil.Process().net_connections("inet")
    seen = ("worker", [c.laddr.ip for c in mine if c.status == "LISTEN"], os.nice(0))
    dist.barrier()
    return seen

with private_ray(4):
    trainer = TorchTrainer(
        loop, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(name="x", storage_path=sys.argv[1]),
        torch_config=NodeAddressConfig(),
    )
    worker = trainer.fit().return_value
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    print(json.dumps({
        "sockets": sockets(), "worker": worker, "mode": os.environ["RAY_AUTH_MODE"],
        "token": oct(os.stat(token).st_mode), "folder": oct(os.stat(os.path.dirname(token)).st_mode),
    }))
left = [p.name() for p in psutil.Process().children() if p.status() != "zombie"]
print(json.dumps({"gone": not os.path.exists(token), "left": left}))
"""


@pytest.mark.cluster
@pytest.mark.ray
def test_it_listens_on_loopback_with_a_token_and_leaves_nothing(tmp_path: Path) -> None:
    import json

    (tmp_path / LONG).mkdir()
    home = tmp_path / "home"
    home.mkdir()
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_worker"))}
    run = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "train")],
        env=hidden | {"TMPDIR": str(tmp_path / LONG), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen, after = map(json.loads, run.stdout.strip().splitlines()[-2:])
    names = {name for name, _ in seen["sockets"]}
    assert {"gcs_server", "raylet"} < names, "all of Ray's processes are looked at"
    loopback = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert [entry for entry in seen["sockets"] if entry[1] not in loopback] == []
    assert [ip for ip in seen["worker"][1] if ip not in loopback] == []
    assert seen["worker"][2] == os.nice(0)
    assert (seen["mode"], seen["token"], seen["folder"]) == ("token", "0o100600", "0o40700")
    assert not (home / ".ray").exists()
    assert after == {"gone": True, "left": []}


# Ctrl-C is not ignored, as it is where a shell runs these tests in the background.
START = [sys.executable, "-c", "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"]
START[-1] += (
    "from raypaml.cli import run_command\n"
    "from raypaml.cluster.session import join\ndef main():\n    print('begins', flush=True)\n"
    "    with join('', 2): print('up', flush=True)\n"
    "run_command(main, 'raypaml train')\n"
)


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_is_one_line_and_its_code(tmp_path: Path, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rp") as temp:
        run = subprocess.Popen(START, stdout=-1, stderr=-1, text=True, env=os.environ | {"TMPDIR": temp})
        assert run.stdout.readline() == "begins\n"
        while not list(Path(temp).glob("raypaml-*/r/session_*/logs/gcs_server.out")):  # up in a second from there
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        out, err = run.communicate(timeout=90)
        assert (run.returncode, out) == (128 + number, ""), err
        assert err == "stopped while Ray was starting\n"
        assert not list(Path(temp).glob("raypaml-*"))


@pytest.mark.cluster
@pytest.mark.ray
def test_sigterm_after_the_start_is_silent_and_has_its_code() -> None:
    used = [*START[:-1], START[-1].replace("print('up', flush=True)", "print('up', flush=True); time.sleep(90)")]
    used[-1] = f"import time\n{used[-1]}"
    run = subprocess.Popen(used, stdout=-1, stderr=-1, text=True)
    assert [run.stdout.readline(), run.stdout.readline()] == ["begins\n", "up\n"]
    run.terminate()
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (128 + signal.SIGTERM, "")
    assert err in ("", "waiting for Ray to start\n")  # on a busy machine


@pytest.mark.cluster
@pytest.mark.ray
def test_a_start_that_times_out_is_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        START, env=os.environ | {"RAY_gcs_server_port_wait_time_s": "0"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.startswith("raypaml train: Ray does not start on this machine: Timed out waiting for")
    assert run.stderr.count("\n") == 1, run.stderr
