"""Where images lie whose labels say no split: never in folders that are named for splits."""

from __future__ import annotations

from raypaml.data.shards import SPLITS
from raypaml.data.storage import Location, with_retries
from raypaml.preparation.formats.common import Source
from raypaml.preparation.split_names import folder_names


def check_places(source: Source, images: str) -> None:
    """Refuse labels without splits some of whose files are in a folder named for a split only.

    Each would be looked for in the folder of the split that it is cut into, where another picture may have its name.

    Args:
        source: as it was read, before it is cut.
        images: folder or address of its images.

    Raises:
        ValueError: there are such files.
    """
    root = Location(images)
    if source.has_splits or set(source.splits) != {"train"}:
        return
    folders = [name for split in SPLITS for name in folder_names(split) if (root / name).kind() == "folder"]
    missing = _missing(root, source.splits["train"].files) if folders else []
    for name in folders:
        there = set(missing).difference(_missing(root / name, missing))
        if there:
            raise ValueError(
                f"images={images}: the labels say no split, and {len(there):,} of their files, such as {min(there)}, "
                f"are in {name} and not there; give --images {root / name}, or say the split of each image"
            )


def _missing(folder: Location, files: list[str]) -> list[str]:
    """Those of the files that are not below a folder."""
    filesystem, path = folder.open()
    asked = [f"{path}/{file}" for file in files]
    infos = with_retries(lambda: filesystem.get_file_info(asked), f"{folder}")
    return [file for file, info in zip(files, infos, strict=True) if not info.is_file]
