"""Outputs that cannot be written are refused before the work begins: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from raypaml import aggregate, audit, evaluate, explain, export, predict, shard, train
from raypaml.api import audited, exported, predicted, predicted_split
from raypaml.cli import run_command
from raypaml.cluster import launch
from raypaml.errors import is_lasting, told_refusal
from raypaml.explanations.explain_runs import ExplainedRuns
from raypaml.files import whole, whole_folder
from raypaml.outputs import output_file, output_files, output_folder
from raypaml.preparation.formats import format_flags
from raypaml.writable import check_writable

Main = Callable[[list[str]], int]
COMMANDS: dict[str, tuple[Main, str, list[str]]] = {
    "evaluate": (evaluate.main, "folder", ["RUN", "--split", "validation", "--out"]),
    "explain": (explain.main, "folder", ["RUN", "--out"]),
    "predict": (predict.main, ".csv", ["RUN", "PICTURES", "--out"]),
    "predict parquet": (predict.main, ".parquet", ["RUN", "PICTURES", "--out"]),
    "predict overlays": (predict.main, "folder", ["RUN", "PICTURES", "--overlays"]),
    "export": (export.main, "folder", ["RUN", "--out"]),
    "audit": (audit.main, "folder", ["RUN", "--out"]),
    "aggregate json": (aggregate.main, ".json", ["RUN", "--json"]),
    "aggregate csv": (aggregate.main, ".csv", ["RUN", "--csv"]),
    "aggregate figure": (aggregate.main, ".svg", ["RUN", "--figure"]),
    "compare": (shard.main, ".json", ["compare", "DATA", "DATA", "--json"]),
    "shard folder": (shard.main, "folder", ["folder", "PICTURES", "--out"]),
    "train": (train.main, "folder", ["--data", "DATA", "--name", "x", "--storage"]),
}
"""By name the command, whether its output is a folder or a file of which suffix, and its arguments."""

WORK: dict[str, tuple[object, str]] = {
    "evaluate": (predicted_split, "_predict"),
    "explain": (ExplainedRuns, "compare"),
    "predict": (predicted, "find_pictures"),
    "export": (exported, "Count"),
    "audit": (audited, "audit_run"),
    "aggregate": (aggregate, "evaluation_options"),
    "compare": (shard, "compare_folders"),
    "shard": (format_flags, "read_folder"),
    "train": (launch, "fit"),
}
"""By the first word of a command the function that begins its work, which must not be reached."""


def place_of(fault: str, folder: Path, suffix: str) -> Path:
    """A path below the folder for an output, which has this fault."""
    path = folder / f"out{suffix}"
    if fault == "other kind":
        path.mkdir() if suffix else path.write_text("a file")
    elif fault == "below a file":
        (folder / "file").write_text("a file")
        path = folder / "file" / path.name
    elif fault == "long name":
        path = folder / ("n" * 300 + suffix)
    elif fault == "long path":
        path = folder.joinpath(*["d" * 99] * 50, path.name)
    elif fault == "loop":
        (folder / "loop").symlink_to(folder / "loop")
        path = folder / "loop" / path.name
    return path


FAULTS = {
    "other kind": "Is a directory; give the name of a file|Not a directory; a file or a|out: a file; give a folder",
    "below a file": "Not a directory; a file or a broken link is in the place of a folder; give another path",
    "long name": r"n\.\.\.n.*File name too long; give a name of at most 200 bytes|has 300 bytes; give at most 240",
    "long path": r"characters\): File name too long; .* a path of at most 4,000",
    "loop": "Too many levels of symbolic links; a link leads back to itself; remove it|Not a directory; a file or",
    "full disk": "No space left on device; make room on the disk, or name a place on another one",
    "read-only": "Read-only file system; name a place that can be written to",
}


NUMBERS = {"full disk": errno.ENOSPC, "read-only": errno.EROFS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        Image.new("RGB", (32, 32)).save(folder / name / "1.jpg")
    return folder


def run(name: str, place: Path | str, trained: tuple[Path, str], data: Path, pictures: Path) -> int:
    """Run a command of COMMANDS as the shell does; returns its exit code."""
    main, _, arguments = COMMANDS[name]
    paths = {"RUN": str(trained[0]), "DATA": str(data), "PICTURES": str(pictures)}
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: main([*(paths.get(one, one) for one in arguments), str(place)]), "raypaml")
    return int(stopped.value.code or 0)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_said_before_the_work(
    name: str,
    fault: str,
    trained: tuple[Path, str],
    evaluated_digits: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    suffix = COMMANDS[name][1].removeprefix("folder")
    place, before = place_of(fault, tmp_path, suffix), names(tmp_path)
    monkeypatch.setattr(*WORK[name.split()[0]], lambda *_, **__: pytest.fail("the work has begun"))
    if fault in NUMBERS:
        monkeypatch.setattr(Path, "write_bytes", failing(NUMBERS[fault]))
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: failing(NUMBERS[fault])(Path(dir), b""))  # noqa: A006
    assert run(name, place, trained, evaluated_digits, pictures) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.search(FAULTS[fault], last), last
    assert re.match(r"raypaml: (\w+=)?'?/", last), last
    assert ".unfinished" not in last
    assert names(tmp_path) == before


def failing(number: int) -> Callable[[Path, bytes], int]:
    """A Path.write_bytes that fails as a disk does: a full one still takes the names of files."""

    def write(path: Path, content: bytes) -> int:
        if number == errno.ENOSPC and not path.is_dir():
            path.touch()
        raise OSError(number, os.strerror(number))

    return write


# --- What is unfinished is removed ------------------------------------------------------------------------------------


def fail(folder: Path, error: type[BaseException]) -> None:
    (folder / "half").touch()
    raise error("half")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folders_made_for_an_output_go_with_it(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), output_file(tmp_path / "a" / "b" / "file.csv"):
        raise error
    with pytest.raises(error), output_folder(tmp_path / "c" / "d") as folder:
        fail(folder, error)
    with pytest.raises(error), whole_folder(tmp_path / "e" / "f") as folder:
        fail(folder, error)
    assert names(tmp_path) == []


def test_a_pipe_or_device_is_written_in_place(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.json")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with output_file(pipe) as place:
        place.write_text("{}")
    assert os.read(reader, 10) == b"{}"
    os.close(reader)
    assert pipe.is_fifo()
    with output_files("/dev/null", "/dev/stdout") as places:
        assert places == [Path("/dev/null"), Path("/dev/stdout")]
    assert Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["pipe.json"]


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(ValueError, match="half"), output_folder(tmp_path):
        raise ValueError("half")
    with pytest.raises(ValueError, match="half"), output_folder(tmp_path / "parts", goes_on=True) as folder:
        fail(folder, ValueError)
    assert names(tmp_path) == ["old", "parts", "parts/half"]
    check_writable(tmp_path / "x" / "y")
    assert names(tmp_path) == ["old", "parts", "parts/half"]


def test_an_output_does_not_mix_with_data_or_run(trained: tuple[Path, str], evaluated_digits: Path) -> None:
    for folder, kind in ((evaluated_digits, "a data set"), (trained[0], "a run")):
        with (
            pytest.raises(ValueError, match=f"holds {kind}, which the files would be mixed with"),
            output_folder(folder),
        ):
            pass
    checkpoint = max((trained[0] / "checkpoints").iterdir())
    with pytest.raises(ValueError, match="holds a checkpoint"), output_folder(checkpoint):
        pass
    for path in (
        evaluated_digits / "ap.csv",
        trained[0] / "config.json",
        trained[0] / "predictions/test/vocabulary.csv",
    ):
        with pytest.raises(ValueError, match="which the file would change; give it another folder"), output_file(path):
            pass
    with output_file(trained[0] / "ap.json") as unfinished:
        assert unfinished.read_bytes() == b""
    (trained[0] / "ap.json").unlink()
    with pytest.raises(ValueError, match=r"ap\.csv: named for two outputs"), output_files("ap.csv", None, "ap.csv"):
        pass


# --- The line ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_names_the_file_it_was_met_at(tmp_path: Path) -> None:
    for write in (whole, whole_folder):
        with pytest.raises(OSError, match="No space left") as failed, write(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert told_refusal(failed.value) == (
            f"{tmp_path}/out: No space left on device; make room on the disk, or name a place on another one"
        )
        assert is_lasting(failed.value)


def test_a_filled_folder_or_a_file_is_refused_before_a_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, said in ((tmp_path, "Directory not empty; give a new"), (tmp_path / "file", "File exists; remove it")):
        with pytest.raises(OSError) as failed, whole_folder(path):
            pytest.fail("the block has begun")
        assert told_refusal(failed.value).startswith(f"{path}: {said}")


def test_standard_output_that_cannot_be_written_is_one_line_too() -> None:
    code = "from raypaml.cli import run_command\nrun_command(lambda: print('text'), 'raypaml')"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "raypaml: No space left on device; make room on the disk, or name a place on another one\n"
