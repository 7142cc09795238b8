"""The phases of the rehearsal: each is one command as people give it, on the files of the phases before it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raypaml.labels import GROUP_NAMES
from tools.full_size.labels import LABELLED
from tools.full_size.measured import Figures, bytes_below, measure
from tools.full_size.scenes import SIDE

RESULTS = "results.jsonl"
BATCH = 256
LONG_AT = 0.1
"""Largest scale at which a run has EPOCHS, and LL-Cp and a search are tried."""
DELTA_RELS = ("0.005", "0.01", "0.02", "0.05")
"""What the search tries; each trial keeps its history, so that the truth can judge it."""
EPOCHS, LARGE_EPOCHS = 3, 2
"""How many a run has, and above LONG_AT; the first rejects nothing."""
STEPS_AT_ONCE = 500
"""Most steps between two checkpoints."""
GROUP_AUDITS = {group: f"audit-{group.lower()}" for group in GROUP_NAMES[:-1]}
"""Name of the phase that audits a class group alone, and of its folder in the run's: the list of all classes may hold
the most frequent group alone."""
FIRST_STEP = r"epoch \d+/"
"""What the display shows with the first step that it hears of."""


@dataclass(frozen=True)
class Place:
    """Where a rehearsal lies, and how large it is."""

    out: Path
    scale: float
    class_lists: Path | None = None
    processes: int = 2

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return self.out / "data"

    def run(self, scheme: str) -> Path:
        """The folder of a training run."""
        return self.out / "runs" / scheme

    @property
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints: about three in an epoch of a small scale."""
        return max(1, min(STEPS_AT_ONCE, round(LABELLED["train"] * self.scale / BATCH / 3)))


Words = Sequence[str | Path]


@dataclass(frozen=True)
class Phase:
    """A command that is run and measured."""

    name: str
    words: Callable[[Place], Words]
    """Arguments of raypaml; or, from a path that ends in .py on, a script with its own."""
    kept: Callable[[Place], Path] | None = None
    """What it writes, whose bytes are counted."""
    marks: dict[str, str] = field(default_factory=dict)
    killed: Callable[[Place], bool] | None = None
    """Says when the command is to be killed."""
    stopped: Callable[[Place], bool] | None = None
    """Says when the command is to be asked to end."""
    above_scale: float = 0.0
    most_scale: float = 1.0
    """It belongs to rehearsals of a scale above the one, up to the other."""
    codes: tuple[int, ...] = (0,)
    """Exit codes that are as they should be."""


def training(place: Place, scheme: str, *more: str) -> list[str | Path]:
    """Returns the flags of a run with 5,000 classes and a small network."""
    epochs = EPOCHS if place.scale <= LONG_AT else LARGE_EPOCHS
    return [
        *("openimages_v3", "--data", place.data, "--storage", place.out / "runs", "--name", scheme),
        *("--scheme", scheme, "--backbone", "small", "--weights", "", "--lr", "0.002", "--loader-workers", "2"),
        *("--delta-rel", "0.02", "--epochs", str(epochs), "--global-batch-size", str(BATCH), "--history"),
        *("--checkpoint-steps", str(place.checkpoint_steps), *more),
    ]


def in_mid_epoch(run: Path) -> bool:
    """Whether a run has a checkpoint from within an epoch."""
    return any(not path.name.endswith("-000000") for path in run.glob("checkpoints/[0-9]*-[0-9]*"))


def saved_steps(run: Path) -> int:
    """Returns the most steps of the first epoch that a checkpoint has."""
    return max((int(path.name.partition("-")[2]) for path in run.glob("checkpoints/0000-[0-9]*")), default=0)


def _release(place: Place) -> Words:
    lists: Words = ["--class-lists", place.class_lists] if place.class_lists else []
    script = Path(__file__).parent.parent / "rehearsal.py"
    size = ["--scale", str(place.scale), "--processes", str(place.processes)]
    return [script, "--out", place.out, *size, *lists, "--write-release"]


def _complete(name: str, run: str) -> Phase:
    """A phase that predicts every entry of the test split, of which the truth knows what is true."""
    return Phase(
        f"{name}-complete",
        lambda place: ["evaluate", place.run(run), "--unobserved"],
        lambda place: place.run(run) / "predictions" / "test-unobserved",
        most_scale=LONG_AT,
    )


def _evaluated(split: str) -> Callable[[Place], Path]:
    return lambda place: place.run("ll_r") / "predictions" / split


_FIRST = {"first step": FIRST_STEP}
_CP = {"most_scale": LONG_AT, "marks": _FIRST}


def _ll_r(*words: str) -> Callable[[Place], Words]:
    """A command on the trained run."""
    return lambda place: [words[0], place.run("ll_r"), *words[1:]]


PHASES = (
    Phase("release", _release, lambda place: place.out / "release"),
    Phase(
        "shard",
        lambda place: [
            *("shard", "openimages", "--metadata", place.out / "release" / "metadata", "--images"),
            *(place.out / "release" / "images", "--out", place.data, "--resize", str(SIDE), "--workers", "2"),
        ],
        lambda place: place.data,
    ),
    Phase("verify", lambda place: ["shard", "verify", place.data, "--workers", "2"]),
    Phase("doctor", lambda place: ["doctor", *training(place, "ll_r", "--workers", "2")], codes=(0, 1)),
    Phase("plan", lambda place: ["train", *training(place, "ll_r", "--workers", "2", "--plan")]),
    Phase("suggest", lambda place: ["tune", *training(place, "ll_r"), "--suggest"]),
    Phase(
        "train-killed",
        lambda place: ["train", *training(place, "ll_r", "--workers", "2")],
        lambda place: place.run("ll_r"),
        _FIRST,
        lambda place: in_mid_epoch(place.run("ll_r")),
    ),
    Phase(
        "train-resumed",
        lambda place: ["train", *training(place, "ll_r", "--workers", "1")],
        lambda place: place.run("ll_r"),
        _FIRST,
        stopped=lambda place: place.scale > LONG_AT and saved_steps(place.run("ll_r")) >= 2 * STEPS_AT_ONCE,
        codes=(0, 143),
    ),
    Phase(
        "train-finished",
        lambda place: ["train", *training(place, "ll_r", "--workers", "2")],
        lambda place: place.run("ll_r"),
        _FIRST,
        above_scale=LONG_AT,
    ),
    Phase("validation", _ll_r("evaluate", "--choose-alpha", "--workers", "2"), _evaluated("validation")),
    Phase("test", _ll_r("evaluate", "--workers", "2"), _evaluated("test")),
    Phase("aggregate", _ll_r("aggregate", "--bootstrap", "1000")),
    Phase(
        "thresholds",
        lambda place: ["aggregate", place.run("ll_r"), "--thresholds-from", _evaluated("validation")(place)],
    ),
    Phase("audit", _ll_r("audit", "--top", "5000", "--workers", "2"), lambda place: place.run("ll_r") / "audit"),
    *(
        Phase(
            name,
            lambda place, group=group, name=name: [  # type: ignore[misc]
                *("audit", place.run("ll_r"), "--classes", group, "--top", "1000", "--workers", "2"),
                *("--out", place.run("ll_r") / name),
            ],
            lambda place, name=name: place.run("ll_r") / name,  # type: ignore[misc]
            most_scale=LONG_AT,
        )
        for group, name in GROUP_AUDITS.items()
    ),
    Phase("explain", _ll_r("explain", "--limit", "500"), lambda place: place.run("ll_r") / "explanations"),
    Phase(
        "predict",
        lambda place: [
            *("predict", place.run("ll_r"), place.data / "test-000000.tar", "--top", "5", "--out"),
            place.out / "answers.parquet",
        ],
        lambda place: place.out / "answers.parquet",
    ),
    Phase("export", _ll_r("export", "--formats", "safetensors,program"), lambda place: place.run("ll_r") / "export"),
    Phase("report", _ll_r("report"), lambda place: place.run("ll_r") / "report.html"),
    Phase(
        "ll_cp-killed",
        lambda place: ["train", *training(place, "ll_cp", "--workers", "1")],
        lambda place: place.run("ll_cp"),
        killed=lambda place: any(place.run("ll_cp").glob("checkpoints/0001-*")),
        **_CP,  # type: ignore[arg-type]
    ),
    Phase(
        "ll_cp-resumed",
        lambda place: ["train", *training(place, "ll_cp", "--workers", "2")],
        lambda place: place.run("ll_cp"),
        **_CP,  # type: ignore[arg-type]
    ),
    Phase(
        "search",
        lambda place: [
            *("tune", *training(place, "ll_r", "--workers", "1")[:5], "--name", "search"),
            *training(place, "ll_r")[7:],
            *("--search", f"delta_rel={'|'.join(DELTA_RELS)}", "--searcher", "grid", "--no-early-stop"),
            *("--epochs", "2"),
        ],
        lambda place: place.out / "runs" / "search",
        most_scale=LONG_AT,
    ),
    Phase(
        "an",
        lambda place: ["train", *training(place, "an", "--workers", "2")],
        lambda place: place.run("an"),
        **_CP,  # type: ignore[arg-type]
    ),
    *(
        Phase(
            f"{scheme}-test",
            lambda place, scheme=scheme: ["evaluate", place.run(scheme), "--workers", "2"],  # type: ignore[misc]
            lambda place, scheme=scheme: place.run(scheme) / "predictions" / "test",  # type: ignore[misc]
            most_scale=LONG_AT,
        )
        for scheme in ("an", "ll_cp")
    ),
    *(_complete(scheme, scheme) for scheme in ("an", "ll_r", "ll_cp")),
    *(_complete(f"search-{value}", f"search/trials/delta_rel={value}") for value in DELTA_RELS),
)
NAMES = tuple(phase.name for phase in PHASES)


def command_of(phase: Phase, place: Place) -> list[str]:
    """Returns the whole command of a phase."""
    words = [str(word) for word in phase.words(place)]
    return [sys.executable, *(words if words[0].endswith(".py") else ["-m", "raypaml", *words])]


def chosen(names: str, scale: float) -> list[Phase]:
    """Returns the phases of these names, with commas between, or all of this scale.

    Raises:
        ValueError: there is no such phase.
    """
    wanted = [name.strip() for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise ValueError(f"phases={unknown[0]!r}: there is no such phase; choose from {', '.join(NAMES)}")
    if wanted:
        return [phase for phase in PHASES if phase.name in wanted]
    return [phase for phase in PHASES if phase.above_scale < scale <= phase.most_scale]


def rehearse(place: Place, phases: Sequence[Phase], commit: str, say: Callable[[str], None]) -> int:
    """Runs phases and appends what was measured of each to results.jsonl; returns how many failed."""
    (place.out / "logs").mkdir(parents=True, exist_ok=True)
    failed = 0
    for phase in phases:
        killed, log = phase.killed, place.out / "logs" / f"{phase.name}.log"
        kill_when, stop_when = _of_place(killed, place), _of_place(phase.stopped, place)
        command = command_of(phase, place)
        figures = measure(command, log, {"PYTHONUNBUFFERED": "1"}, phase.marks, kill_when, stop_when)
        right = figures.exit_code is None if killed else figures.exit_code in phase.codes
        failed += not right
        record = record_of(phase, place, figures) | {"commit": commit, "command": command[1:], "right": right}
        with (place.out / RESULTS).open("a") as file:
            file.write(json.dumps(record) + "\n")
        code = "killed" if figures.exit_code is None else f"exit code {figures.exit_code}"
        say(
            f"{phase.name}: {figures.seconds:.1f} s, {figures.cpu_seconds:.1f} s of processor time, "
            f"{max(figures.peaks.values(), default=0):.0f} MB a process, {figures.together:.0f} MB in all, {code}"
            f"{'' if right else f'; this is a failure, see {log}'}"
        )
    return failed


def _of_place(condition: Callable[[Place], bool] | None, place: Place) -> Callable[[], bool] | None:
    return None if condition is None else lambda: condition(place)


def record_of(phase: Phase, place: Place, figures: Figures) -> dict[str, Any]:
    """Returns a line of results.jsonl."""
    size, count = bytes_below(phase.kept(place)) if phase.kept else (0, 0)
    return {"phase": phase.name, "scale": place.scale, "bytes": size, "written": count, **asdict(figures)}
