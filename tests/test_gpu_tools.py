"""`make gpu-check` and `make gpu-bench`, small and on a CPU, with nothing imported that a GPU machine may lack."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.gpu import gpu_wheels
from tools.gpu.gpu_kernels import kernel_kind
from tools.gpu.gpu_rows import Entry, Row, run_entry

ROOT = Path(__file__).parent.parent
LACKING = ("ray", "matplotlib", "rich")
WITHOUT = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({LACKING!r}))  # as if they were not installed
sys.argv = ["tools.gpu", *sys.argv[1:]]
runpy.run_module("tools.gpu", run_name="__main__", alter_sys=True)
"""


def test_both_run_on_a_cpu_without_what_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "check", "bench", "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert not [line for line in done.stderr.splitlines() if "NOT OK" in line]
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    named = {row[0]: row for row in rows}
    assert named["digits reproducible: continued"][1:] == ["bitwise equal weights", "differ by 0", "ok"]
    assert named["gloo, one rank: sum, gather"][2] == "3, [0 1 2]"
    assert "images/s" in named["published, float32, 1 images, cudnn.benchmark off"][2]
    assert named["gloo, one rank: warnings"][2] == "none"
    assert "operations" in named["kernels of the head"][2]
    for goal in ("step without data, not compiled", "ours, compiled", "head and loss", "host waits", "end to end"):
        assert any(name.startswith(f"goal: {goal}") for name in named), goal
    assert (tmp_path / "profile.json.gz").is_file()


def asked(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(logs=str(tmp_path), out="", device="cpu", small=True)


def says_a_row(_: argparse.Namespace) -> Iterator[Row]:
    yield Row("first", "1", "1", True)


def fails_after_a_row(given: argparse.Namespace) -> Iterator[Row]:
    yield from says_a_row(given)
    raise RuntimeError("CUDA error: an illegal memory access\nCompile with ...")


def dies_after_a_row(given: argparse.Namespace) -> Iterator[Row]:
    yield from says_a_row(given)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_after_a_row(given: argparse.Namespace) -> Iterator[Row]:
    yield from says_a_row(given)
    os.write(1, b"a line of output")
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("check", "seconds", "found"),
    [
        (fails_after_a_row, 100.0, r"RuntimeError: CUDA error: an illegal memory access (test_gpu_tools.py:"),
        (dies_after_a_row, 100.0, "its process ended with code -9"),
        (hangs_after_a_row, 4.0, "ended, because it was still running"),
    ],
)
def test_an_entry_that_fails_is_a_row_after_those_it_had(
    check: object, seconds: float, found: str, tmp_path: Path
) -> None:
    rows = list(run_entry(Entry("it", check, seconds), asked(tmp_path), 1000.0))  # type: ignore[arg-type]
    assert [(row.what, row.passed) for row in rows] == [("first", True), ("it", False)]
    assert rows[1].result.startswith(found)
    assert ("a line of output" in (tmp_path / "it.log").read_text()) == (check is hangs_after_a_row)


def test_an_entry_for_which_no_time_is_left_is_not_run(tmp_path: Path) -> None:
    (row,) = run_entry(Entry("it", says_a_row, 2.0), asked(tmp_path), -1.0)
    assert "--minutes" in row.result
    assert not row.passed


def test_entries_are_chosen_by_how_their_names_begin() -> None:
    from tools.gpu.gpu_entries import chosen_entries

    chosen = chosen_entries(["check", "bench"], "head,compiled,device")
    assert [entry.name for entry in chosen] == ["device", "head and loss", "compiled step", "compiled small step"]
    assert len(chosen_entries(["check"], "")) == 5
    with pytest.raises(ValueError, match="only=haed: no entry of this name in check; known: device, pytest"):
        chosen_entries(["check"], "haed")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel<...>", "batch norm"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "products"),
        ("triton_red_fused__native_batch_norm_legit_functional_3", "compiled"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16> >",
            "elementwise",
        ),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::(anonymous namespace)::max_pool_forward_nhwc<c10::BFloat16, int>", "others"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


def test_a_row_that_is_not_as_expected_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tools.gpu.__main__ import _conclude

    _conclude([("a", "1", "1", "ok"), ("b", "-", "2", "")], str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        _conclude([("a", "1", "1", "ok"), ("b", "1", "2", "NOT OK")], str(tmp_path))
    assert "NOT OK" in capsys.readouterr().out


def test_wheels_give_what_is_missing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, module in (("gpu_only_here-1.0-py3-none-any", "gpu_only_here"), ("torch-9.9-py3-none-any", "torch")):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "value = 3")
    assert gpu_wheels.use_wheels(tmp_path / "into", tmp_path) == ["gpu_only_here"]
    assert __import__("gpu_only_here").value == 3
    assert not (tmp_path / "into" / "torch.py").exists()
