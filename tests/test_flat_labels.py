"""The JSON of our shards has the types that HF datasets and Ray Data infer, whatever a sample lacks; old ones open."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from raypaml import shard
from raypaml.data.data_folder import open_folder
from raypaml.data.index import open_index
from raypaml.data.label_forms import BOX_LISTS, flat_json, own_labels
from raypaml.data.shards import Sample, write_dataset
from tests.odd_images import encoded, picture

INFERRED_FROM = 5
"""Samples from which HF datasets (packaged_modules/webdataset, 2.14 to 5.2) takes the types of all columns."""
KEYS = ["positive", "negative", "truth", "truth_known", *BOX_LISTS]
STRINGS, FLOATS = pa.list_(pa.string()), pa.list_(pa.float64())
TYPES = [STRINGS, STRINGS, STRINGS, pa.bool_(), STRINGS, *[FLOATS] * 4]
IMAGES = 40
ODD_ONE = 31
"""The only image with a negative, the only one with a box."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of images of which hardly any has a negative or a box, and the boxes."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = ["image,labels,negatives,split"]
    for number in range(IMAGES + 2):
        (folder / f"p{number:03d}.jpg").write_bytes(encoded(picture(rng, (24, 16))))
        split = ("train", "validation", "test")[max(0, number - IMAGES + 1)]
        rows.append(f"p{number:03d}.jpg,cat,{'dog' if number == ODD_ONE else ''},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "boxes.csv").write_text(f"image,class,xmin,ymin,xmax,ymax\np{ODD_ONE:03d}.jpg,cat,1,2,9,8\n")
    return folder


def prepare(table: Path, out: Path, *more: str) -> int:
    flags = ["--boxes", str(table / "boxes.csv"), "--resize", "none", "--workers", "1", "--classes"]
    (out.parent / "classes.txt").write_text("cat\ndog\n")
    flags += [str(out.parent / "classes.txt"), "--out", str(out), *more]
    return shard.main(["table", str(table / "labels.csv"), *flags])


def samples(path: Path) -> list[dict[str, Any]]:
    """Every sample as HF datasets decodes it."""
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, suffix = member.name.split(".")
            content = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file
            decoded = json.loads(content) if suffix == "json" else content
            found.setdefault(key, {"__key__": key})[suffix] = decoded
    return list(found.values())


def inferred(first: list[dict[str, Any]]) -> pa.Schema:
    """As HF datasets infers it: a table a sample, joined without any other promotion than that of nulls."""
    return pa.concat_tables([pa.Table.from_pylist([one]) for one in first], promote_options="default").schema


def test_every_sample_has_the_types_of_the_first_five(table: Path, tmp_path: Path) -> None:
    assert prepare(table, tmp_path / "out", "--shard-samples", "10") == 0
    found = [one for n in range(4) for one in samples(tmp_path / "out" / f"train-00000{n}.tar")]
    assert len(found) == IMAGES
    schema = inferred(found[:INFERRED_FROM])
    labels = schema.field("json").type
    assert [labels.field(n).name for n in range(labels.num_fields)] == KEYS
    assert [field.type for field in labels if field.name != "truth"] == [
        kind for name, kind in zip(KEYS, TYPES, strict=True) if name != "truth"
    ]
    assert labels.field("truth").type == pa.list_(pa.null())  # known of no sample
    whole = pa.Table.from_pylist(found, schema=schema)
    assert sum(len(row["json"]["box_x0"]) for row in whole.to_pylist()) == 1
    assert [row["json"] for row in whole.to_pylist()] == [one["json"] for one in found]
    assert shard.main(["verify", str(tmp_path / "out")]) == 0


def test_keys_and_types_do_not_depend_on_what_is_known(tmp_path: Path) -> None:
    """Boxes in whole numbers too: 1 and 1.5 would be of two types."""
    some = {"positive": ["a"], "negative": ["b"]}
    known = some | {"truth": ["a", "c"], "boxes": [("a", 0, 1, 2.5, 3)]}
    for labels in (some, known):
        found = json.loads(flat_json(labels))
        assert list(found) == KEYS
        read = own_labels(flat_json(labels), "here")
        assert read == {"boxes": []} | labels
    table = pa.Table.from_pylist([json.loads(flat_json(known))])
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == dict(zip(KEYS, TYPES, strict=True))


def test_lists_of_boxes_of_different_lengths_are_refused() -> None:
    labels = json.loads(flat_json({"positive": [], "negative": [], "boxes": [("a", 0, 0, 1, 1)]}))
    with pytest.raises(ValueError, match=r"here: the lists box_class, box_x0, .* are not of the same length"):
        own_labels(json.dumps(labels | {"box_x1": []}).encode(), "here")


def test_what_is_full_and_empty_is_not_what_is_unknown() -> None:
    """An image without any class has full labels: none."""
    for truth in ({}, {"truth": []}):
        assert ("truth" in own_labels(flat_json({"positive": [], "negative": ["a"]} | truth), "")) == bool(truth)


def as_earlier(data: Path) -> None:
    """The record of a data set as earlier versions wrote it."""
    record = json.loads((data / "preparation.json").read_text())
    for name in ("json", "background", "large_jpegs"):
        del record["parameters"][name]
    (data / "preparation.json").write_text(json.dumps(record))


def test_a_data_set_that_was_begun_goes_on_and_is_repaired_as_it_was(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(table, out, "--split", "validation") == 0
    as_earlier(out)
    assert prepare(table, out) == 0
    written = samples(out / "train-000000.tar")
    assert {tuple(one["json"]) for one in written} == {("positive", "negative"), ("positive", "negative", "boxes")}
    before = (out / "train-000000.tar").read_bytes()
    as_earlier(out)
    (out / "train-000000.tar").unlink()
    assert prepare(table, out, "--split", "train", "--repair", "--images", str(table)) == 0
    assert (out / "train-000000.tar").read_bytes() == before


def test_shards_of_both_forms_make_the_same_index(tmp_path: Path) -> None:
    image = encoded(picture(np.random.default_rng(1), (24, 16)))
    given = [
        Sample(key="a", image=image, positive=("x",), negative=(), truth=("x", "y"), boxes=(("y", 0, 1, 2.5, 3),)),
        Sample(key="b", image=image, positive=("y",), negative=("x",), truth=("y",)),
    ]
    (tmp_path / "new").mkdir()
    write_dataset(tmp_path / "new", dict.fromkeys(("train", "validation", "test"), given), "xy", "xy")
    for path in (tmp_path / "new").glob("*.tar"):
        with (tmp_path / path.name).open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
            for sample in given:
                writer.write(sample.members(flat=False))
    assert shard.main(["index", str(tmp_path)]) == 0
    old, new = (open_folder(folder).splits["train"] for folder in (tmp_path, tmp_path / "new"))
    assert old.has_truth
    assert new.has_truth
    for row in range(2):
        assert old.boxes(row) == new.boxes(row)
        assert [old.classes(side, row) for side in ("positives", "negatives", "truth")] == [
            new.classes(side, row) for side in ("positives", "negatives", "truth")
        ]
    assert old.crc32.tolist() == new.crc32.tolist()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # of Ray Data, about itself
def test_ray_data_reads_shards_without_pickled_objects(table: Path, tmp_path: Path) -> None:
    import ray

    assert prepare(table, tmp_path / "out", "--shard-samples", "7") == 0
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        files = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
        tables = [ray.get(block) for block in ray.data.read_webdataset(files).to_arrow_refs()]
    finally:
        ray.shutdown()
    rows = pa.concat_tables(tables, promote_options="permissive")
    assert not any("object" in str(field.type).lower() for field in rows.schema)
    assert pa.types.is_struct(rows.schema.field("json").type)
    keys = open_index(tmp_path / "out" / "train.arrow").key_column.to_pylist()
    assert sorted(rows["__key__"].to_pylist()) == sorted(keys)
