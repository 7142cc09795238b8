"""The folder of a run: its record is written before the first step, and only the same run may be continued in it."""

from __future__ import annotations

import datetime
import errno
import importlib.metadata
import logging
import platform
import subprocess
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from raypaml.config import EARLIER, EXECUTION_FIELDS, TrainConfig
from raypaml.data.data_folder import DataFolder
from raypaml.files import write_json
from raypaml.labels import VOCABULARY
from raypaml.runs.mirror import Mirror, local_folder
from raypaml.runs.run_files import CONFIG, RESULT, WORKER_TIME
from raypaml.runs.run_length import change_length
from raypaml.runs.run_record import ConfigFile, RunRecord, read_run_record
from raypaml.runs.worker_time import begin_command
from raypaml.settings import SettingValues
from raypaml.stored_json import read_stored, refused_as

PACKAGES = ("raypaml", "torch", "torchvision", "ray", "numpy", "pyarrow", "webdataset")


def new_name(config: TrainConfig) -> str:
    """Recipe, scheme, date and time, and four random letters in case two runs start in the same second."""
    now = datetime.datetime.now().astimezone()
    return f"{config.recipe}-{config.loss.scheme}-{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def open_run(storage: str, name: str) -> Path:
    """The folder of a run on this machine; from a store its record and result are copied there."""
    folder = local_folder(storage, name)
    if mirror := Mirror.of(storage, folder):
        try:
            mirror.pull(CONFIG, RESULT)
            if not mirror.there([RESULT]):  # another machine continues a run that had finished
                (folder / RESULT).unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"storage={storage}: {error}") from None
    return folder


def stored_config(folder: Path) -> TrainConfig | None:
    """The configuration of the run in a folder; None where there is no run yet."""
    path = folder / CONFIG
    try:
        if not path.is_file():
            return None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None  # the check of the name refuses it, and says why
    try:
        return read_config(path)
    except ValueError as error:
        raise ValueError(f"{error}; give the run another --name") from None


def read_config(path: Path) -> TrainConfig:
    """Read the configuration in a JSON file, such as a run's record or a search's best.json."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with refused_as(path, "the record of a run"):
        return TrainConfig.from_dict(read_stored(path, ConfigFile)["config"])


def check_trained_classes(run: Path, digest: str, data: str) -> None:
    """Raise ValueError where a run was trained with other classes than those of the data."""
    trained = read_run_record(run)["data"]["vocabulary"]
    if trained != digest:
        raise ValueError(
            f"{data}: another vocabulary (digest {digest[:12]}) than {run} was trained with ({trained[:12]})"
        )


def as_begun(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with which a run begun by an earlier version continues as it began.

    Settings that the stored configuration lacks get their values of `EARLIER`, unless another value is asked for.
    """
    if stored_config(folder) is None:
        return config
    return config.override(had_before(config, stored_settings(folder / CONFIG)))


def stored_settings(path: Path) -> set[str]:
    """The names of the settings in a JSON file with a configuration, which an earlier version may have written."""
    with refused_as(path, "the record of a run"):
        groups = read_stored(path, ConfigFile)["config"]
    return {name for group in groups.values() if isinstance(group, dict) for name in group}


def had_before(config: TrainConfig, stored: Collection[str]) -> SettingValues:
    """The values of `EARLIER` for settings that are not stored, unless the configuration asks for other values."""
    asked, usual = config.flat(), TrainConfig().flat()
    return {name: value for name, value in EARLIER.items() if name not in stored and asked[name] == usual[name]}


def check_same_run(
    folder: Path, config: TrainConfig, data: DataFolder, may_change: Collection[str] = EXECUTION_FIELDS
) -> None:
    """Raise ValueError where a folder holds a run with other settings or another vocabulary.

    Args:
        folder: the run's folder, which need not exist.
        config, data: what is asked for.
        may_change: the names of settings that may differ.
    """
    before = stored_config(folder)
    if before is None:
        return
    old, new = before.flat(), config.flat()
    changed = [f"{k}={old[k]} (asked: {new[k]})" for k in new if k not in may_change and old[k] != new[k]]
    if changed:
        raise ValueError(f"{folder}: the run was started with {', '.join(changed)}; give this one another --name")
    trained = read_run_record(folder)["data"]
    if trained["vocabulary"] != data.vocabulary.digest:
        raise ValueError(f"{folder}: the run was started with another vocabulary than {data.path}'s")
    if (had := trained["samples"]["train"]) != (has := len(data.splits["train"])):
        raise ValueError(
            f"{folder}: the run was started with {had:,} training samples, {data.path} now has {has:,}; put the data "
            "set back, or give this one another --name"
        )


def changed_data(folder: Path, data: DataFolder, splits: Collection[str]) -> str:
    """Which of these splits of a run's data have changed since it was started, for messages; empty for none.

    Records and indexes of early versions have no digests: only the number of samples is compared then.
    """
    trained = read_run_record(folder)["data"]
    had, digests = trained["samples"], trained.get("digests", {})
    changed = []
    for split in splits:
        has, digest, before = len(data.splits[split]), data.splits[split].digest, digests.get(split, "")
        if had.get(split, has) != has:
            changed.append(f"{split} has {has:,} samples, not {had[split]:,}")
        elif digest and before and digest != before:
            changed.append(f"the index of {split} is another one")
    return f"{data.path}: changed since {folder} was started: {'; '.join(changed)}" if changed else ""


def claim(folder: Path, config: TrainConfig, data: DataFolder) -> None:
    """Write the record and the vocabulary of a new run; where a run is continued, record the length asked for.

    Either way it is noted that a command begins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).is_file():
        data.vocabulary.write(folder / VOCABULARY)
        write_json(folder / CONFIG, _record(config, data))
    change_length(folder, config)
    mirror = Mirror.of(config.run.storage, folder)
    if mirror:
        mirror.pull(WORKER_TIME)
    begin_command(folder)
    if mirror:
        mirror.push(CONFIG, VOCABULARY, WORKER_TIME)


@contextmanager
def log_into(path: Path) -> Iterator[None]:
    """Append what this process logs in the block to a file, with the time, the host and the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {platform.node()}:%(process)d %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def _record(config: TrainConfig, data: DataFolder) -> RunRecord:
    from raypaml.data.batches import Reader  # with torch, which --help does without

    height, width, _ = Reader(data.shards, data.splits["train"], (), skip_broken=True).shape
    return {
        "config": config.to_dict(),
        "data": {
            "folder": str(data.path),
            "vocabulary": data.vocabulary.digest,
            "num_classes": len(data.vocabulary),
            "image_size": (height, width),
            "samples": {split: len(index) for split, index in data.splits.items()},
            "digests": {split: index.digest for split, index in data.splits.items()},
        },
        "versions": versions(),
        "commit": _commit(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a run uses, and of Python; raypaml's own also where it is not installed."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES if name != "raypaml"}
    return {"raypaml": sys.modules["raypaml"].__version__} | installed | {"python": platform.python_version()}


def _commit() -> str:
    """The git commit of this checkout, with + where files differ from it; empty for an installed package."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return described.stdout.strip()
