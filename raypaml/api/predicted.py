"""Predicts the classes of pictures in files, folders and shards, in this process or in many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from raypaml.cluster.tasks import device_mapper
from raypaml.counting import Count
from raypaml.data.hidden_files import PassedOver
from raypaml.inference.answer_files import Rows, check_out, writer
from raypaml.inference.choice import ChoiceRequest, choose
from raypaml.inference.classifying import classify
from raypaml.inference.model_card import ModelFiles
from raypaml.inference.pictures import find_pictures
from raypaml.mapper import Processes
from raypaml.outputs import output_folder
from raypaml.runs.alpha_of_use import alpha_text
from raypaml.runs.ranks import one_thread


@dataclass(frozen=True)
class Predicted:
    """The answers of a model for pictures."""

    pictures: int
    """Number of pictures, including broken ones."""
    table: pa.Table | None
    """A row for each answer: `image`, `class`, `name`, `score`; a picture without a class has one row with nulls. None
    where the answers were written to `out`."""
    out: str
    """The file with the answers; "" where there is none."""
    without_class: int
    """Number of pictures of which no class reached its threshold."""
    broken: tuple[tuple[str, str], ...]
    """Name of each picture that cannot be read, with the reason."""

    def __repr__(self) -> str:
        where = f"in {self.out}" if self.table is None else f"{self.table.num_rows:,} rows in .table"
        broken = f", {len(self.broken):,} broken" if self.broken else ""
        return f"<Predicted {self.pictures:,} pictures{broken}; {where}>"


@dataclass(frozen=True, kw_only=True)
class PicturesRequest:
    """What `raypaml predict` is asked for; the fields are its flags."""

    images: Sequence[str]
    """Files, folders and shards, on disk or in an object store."""
    out: str | IO[str] = ""
    """A file, or an open one, which gets CSV; "" collects the answers in a table."""
    choosing: ChoiceRequest
    """The classes that are answered."""
    overlays: str = ""
    """Folder for pictures, at their own size, with the map of each answered class; "" for none."""
    background: str = "white"
    """Colour under transparent pixels."""
    alpha: str = ""
    """The alpha that the model is used with, as `raypaml.load` takes it."""


def predict_pictures(
    model: Path, request: PicturesRequest, processes: Processes, say: Callable[[str], None]
) -> Predicted:
    """Predict pictures, write or collect the answers, and name pictures that were broken or passed over.

    Args:
        model: folder of a run, a checkpoint or an export.
        request: the pictures, and how they are answered.
        processes: the processes that share the pictures.
        say: prints a line of progress.

    Raises:
        ValueError: there is no such model, picture or colour, the suffix of `out` is unknown, or two arguments exclude
            each other.
    """
    out = request.out
    file = out if isinstance(out, str) else ""
    check_out(file)
    rows = Rows()
    with one_thread():
        files = ModelFiles.find(model, request.alpha)
        card = files.card
        choice = choose(card, request.choosing)
        say(f"alpha {alpha_text(card.alpha)}: {card.alpha_origin}; threshold: {choice.said}")
        passed_over = PassedOver(list)
        broken: list[tuple[str, str]] = []
        with (
            writer(out) if out else nullcontext(rows) as to,
            output_folder(Path(request.overlays)) if request.overlays else nullcontext(),
        ):
            pictures = list(find_pictures(request.images, request.background, passed_over))
            empty, count = 0, Count("predicting", len(pictures), say)
            with device_mapper(processes) as (run, device):
                for name, answer in classify(files, pictures, choice, request.overlays, run, device):
                    count.add()
                    empty += not answer
                    if isinstance(answer, str):
                        broken.append((name, answer))
                    else:
                        to.write(name, [(card.class_ids[k], card.names[k], score) for k, score in answer])
    _say_left_out(say, count, broken, empty, passed_over)
    return Predicted(len(pictures), None if out else rows.table(), file, empty, tuple(broken))


def _say_left_out(
    say: Callable[[str], None], count: Count, broken: list[tuple[str, str]], empty: int, passed_over: PassedOver
) -> None:
    rows = ", which have a row without class and score" if empty else ""
    count.show(f"{len(broken):,} broken", f"{empty:,} without a class that reaches its threshold{rows}")
    if passed_over:
        kinds = (f"{reason} {len(names):,} (such as {names[0]})" for reason, names in sorted(passed_over.items()))
        say(f"files passed over, by suffix or other reason: {', '.join(kinds)}")
    for name, reason in broken:
        say(f"broken: {name}: {reason}")
