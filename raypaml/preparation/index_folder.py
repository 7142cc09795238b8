"""Writes vocabulary and indexes for existing WebDataset tars, raypaml's own or those of others.

A sample is KEY.jpg (or .jpeg; where there is none, .png, .webp, ...) and its labels, KEY.json, KEY.cls or KEY.txt.
Folders in a name become part of the key, joined by `__`. All images should have one size. As in WebDataset, folders,
hidden members, `__index__` and names without an extension are passed over; they are counted. These are refused, with
their names: other members that are not files, paths that lead out of the tar, pickled members, damaged or compressed
tars, and samples without exactly one image and one file of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raypaml.cli import Parser
from raypaml.data.data_folder import DataFolder, open_folder
from raypaml.data.hidden_files import PassedOver
from raypaml.data.shards import SPLITS, index_dataset
from raypaml.data.storage import Location
from raypaml.labels import VOCABULARY
from raypaml.preparation.formats.common import class_list
from raypaml.writable import try_folder

FORMS = "how labels are written: json (raypaml's own form), json:positive=FIELD[,negative=FIELD] (a.b is field b of "
FORMS += "a), cls or txt; output.json:positive=FIELD where the files are KEY.output.json [json]"


def add_index_flags(parser: Parser) -> None:
    """Adds the folder of the tars, the form of their labels, and the tars of each split."""
    add = parser.add_argument
    add("folder", metavar="DIR", help="folder of the tars; vocabulary and indexes are written into it")
    add("--labels", default="json", metavar="FORM", help=FORMS)
    add(
        "--image-ext",
        default="",
        metavar="EXT",
        help="suffix of images: input.jpg for KEY.input.jpg [jpg, else any image]",
    )
    about = (
        "keys contain dots: a key ends before the suffix of the image or the labels where one is given, else at the "
    )
    add("--dotted-keys", action="store_true", help=about + "last dot of a name [keys end at the first dot]")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class ids, one a line, or a vocabulary.csv [the folder's, or all classes of training samples]",
    )
    for split in SPLITS:
        add(f"--{split}", default=f"{split}-*.tar", metavar="GLOB", help=f"tars of the {split} split [{split}-*.tar]")


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What `raypaml shard index` is asked for; the fields are its flags."""

    folder: str
    """The folder of the tars."""
    labels: str = "json"
    """Form of the labels, see FORMS."""
    image_ext: str = ""
    """Suffix of the image of a sample; "" takes the JPEG or, where there is none, the only image."""
    dotted_keys: bool = False
    """Whether keys contain dots: a key ends before the suffix of image or labels, or else at the last dot of a name,
    not at the first."""
    classes: Path | None = None
    """File of class ids in their order, or a vocabulary.csv; None takes the folder's vocabulary.csv or, where there is
    none, every class that a training sample names, sorted."""
    train: str = "train-*.tar"
    """Pattern of the tars of the training split; the other splits have one each."""
    validation: str = "validation-*.tar"
    test: str = "test-*.tar"


def index_folder(request: IndexRequest) -> tuple[DataFolder, PassedOver]:
    """Writes vocabulary and indexes in one scan of each tar; returns the data folder and the members passed over.

    Raises:
        ValueError: a split has no shards, or something is refused; the message names it.
    """
    if not Location(request.folder).is_local:
        raise ValueError(f"{request.folder}: not a folder on this machine; copy the shards to one first")
    where, globs = Path(request.folder), {split: str(getattr(request, split)) for split in SPLITS}
    shards = {split: sorted(where.glob(globs[split])) for split in SPLITS}
    missing = [split for split, paths in shards.items() if not paths]
    if missing:
        raise ValueError(f"{where}: no {', '.join(globs[split] for split in missing)}; every split needs a shard")
    listed = request.classes or where / VOCABULARY
    is_listed = request.classes or listed.is_file()
    known = class_list(listed) if is_listed else ((), ())  # none: they are taken from the samples
    try_folder(where)
    passed_over = PassedOver(list)
    index_dataset(
        where,
        shards,
        *known,
        labels=request.labels,
        image_suffix=request.image_ext.removeprefix("."),
        dotted_keys=request.dotted_keys,
        passed_over=passed_over,
    )
    return open_folder(where), passed_over
