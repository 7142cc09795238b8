"""Classifies pictures batch by batch while threads read ahead; a picture gets an answer, or the reason for none."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch

from raypaml.data.images import Pixels
from raypaml.explanations.overlays import overlay
from raypaml.inference.choice import Choice, Chosen
from raypaml.inference.classifier import Classifier, of_files
from raypaml.inference.model_card import Card, ModelFiles
from raypaml.inference.pictures import Picture, read_original, read_picture
from raypaml.labels import RealArray
from raypaml.mapper import Mapper, in_this_process
from raypaml.names import readable, text_digest

_BATCH = 32
_CHUNK = 1024
"""Pictures in one task of a worker."""
READERS = 4
"""Threads that read and decode pictures ahead of the model, one batch each."""

Answer = tuple[str, Chosen | str]
"""The name of a picture, and its classes or the reason why it cannot be read."""


def classify(
    model: ModelFiles, pictures: Iterable[Picture], choice: Choice, overlays: str, run: Mapper, device: str
) -> Iterator[Answer]:
    """The answers for pictures in their order, computed by this process or by those of a mapper.

    Args:
        model: the files of the model; where another process writes new ones, a ValueError is raised.
        pictures: the pictures, as `inference.pictures.find_pictures` yields them.
        choice: the rule by which classes are answered.
        overlays: folder for pictures with the maps of the answered classes; "" for none.
        run: maps calls over processes.
        device: "cuda" or "cpu", where each of these processes computes.
    """
    if run is in_this_process:
        yield from answers(loaded(model, device), pictures, choice, overlays)
        return
    overlays = overlays and str(Path(overlays).absolute())
    chunks = enumerate(batched(pictures, _CHUNK))
    yield from _in_order(
        run(answers_of_chunk, ((number, model, device, chunk, choice, overlays) for number, chunk in chunks))
    )


def _in_order(parts: Iterable[tuple[int, list[Answer]]]) -> Iterator[Answer]:
    early: dict[int, list[Answer]] = {}
    following = 0
    for number, part in parts:
        early[number] = part
        while following in early:
            yield from early.pop(following)
            following += 1


def answers_of_chunk(
    number: int, model: ModelFiles, device: str, pictures: list[Picture], choice: Choice, overlays: str
) -> tuple[int, list[Answer]]:
    """One task for a mapper: returns its number, and the answers for its pictures."""
    return number, list(answers(loaded(model, device), pictures, choice, overlays))


@functools.lru_cache(maxsize=1)
def loaded(model: ModelFiles, device: str) -> Classifier:
    """Load a model, or return the one that the last call loaded from the same weights and card.

    This process then computes with one thread, as `raypaml evaluate` does, so that results are the same to the bit;
    more processes, by --workers, are faster. ValueError where the weights have changed since the card was read.
    """
    torch.set_num_threads(1)
    model.check()
    return of_files(model, device)


def answers(model: Classifier, pictures: Iterable[Picture], choice: Choice, overlays: str) -> Iterator[Answer]:
    """The answers for pictures in their order; threads read and decode a bounded number of batches ahead."""

    def read(batch: list[Picture]) -> list[Pixels | str]:
        """The pixels of each picture, or the reason why it cannot be read."""
        pixels = list[Pixels | str]()
        for picture in batch:
            try:
                pixels.append(read_picture(picture, model.card.height, model.card.width))
            except ValueError as error:
                pixels.append(str(error))
        return pixels

    with ThreadPoolExecutor(READERS) as pool:
        batches = batched(pictures, _BATCH)
        pending = [(batch, pool.submit(read, batch)) for batch in islice(batches, READERS)]
        while pending:
            batch, reading = pending.pop(0)
            pixels = reading.result()
            pending += [(later, pool.submit(read, later)) for later in islice(batches, 1)]
            yield from _of_batch(model, batch, pixels, choice, overlays)


def _of_batch(
    model: Classifier, batch: Sequence[Picture], contents: list[Pixels | str], choice: Choice, overlays: str
) -> Iterator[Answer]:
    sound = [pixels for pixels in contents if not isinstance(pixels, str)]
    maps = None
    if sound and overlays:
        logits, maps = model.logits_and_map(sound)
    chosen = iter(enumerate(choice.of(logits if maps is not None else model.logits(sound)) if sound else []))
    for picture, pixels in zip(batch, contents, strict=True):
        if isinstance(pixels, str):
            yield picture.name, pixels
            continue
        row, classes = next(chosen)
        fault = "" if maps is None else _write_overlays(Path(overlays), picture, model.card, maps[row], classes)
        yield picture.name, fault or classes


def _write_overlays(folder: Path, picture: Picture, card: Card, maps: RealArray, classes: Chosen) -> str:
    """Write a picture at its own size with the map of each answered class; returns why it cannot be read again, or "".

    Each map has its own scale, which ends at its largest value.
    """
    try:
        original = read_original(picture)
    except ValueError as error:
        return str(error)
    folder.mkdir(parents=True, exist_ok=True)
    for place, (k, _) in enumerate(classes, start=1):
        heat = maps[k].clip(0) / max(float(maps[k].max()), 1e-9)
        name = overlay_name(picture.name, place, card.names[k])
        overlay(original, heat).save(folder / name, quality=92, subsampling=0)
    return ""


def overlay_name(picture: str, place: int, class_name: str) -> str:
    """The name of a picture's overlay, such as `cat-1-Tabby_cat-0123456789ab.jpg`.

    The digits at its end tell pictures of one name in different folders apart.

    Args:
        picture: the picture's name, usually a path.
        place: the place of the class among the answers, from 1.
        class_name: the class.
    """
    parts = readable(Path(picture).stem, 80), str(place), readable(class_name, 80), text_digest(picture)
    return "-".join(filter(None, parts)) + ".jpg"


def batched(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Lists of `size` pictures; the last one may be shorter."""
    left = iter(pictures)
    return iter(lambda: list(islice(left, size)), [])
