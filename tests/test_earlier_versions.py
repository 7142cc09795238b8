"""What commit d064269 wrote opens, goes on, evaluates and predicts: `fixtures/d064269`.

folders.tar.xz   data; run (ll_r) and run_cp (ll_cp, training only the head), stopped after 2 of 4 epochs; finished,
                 which is run_cp at its end; export, of that. In a packed file, because their backbones are alike, and
                 then take up the room of one
expected.json    what d064269 itself made of them from there on

The runs name their data and storage by relative paths, so that they go on in any working directory.
"""

from __future__ import annotations

import json
import runpy
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import raypaml
from raypaml import evaluate, export, predict
from raypaml.config import EARLIER, EXECUTION_FIELDS, TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.run_report.conclude import conclude_run
from raypaml.runs.checkpoint import valid_checkpoints
from raypaml.runs.events import Event
from raypaml.runs.history import read_history
from raypaml.runs.run_folder import claim, stored_config
from raypaml.training.job import Job, prepare_job
from raypaml.training.loop import train
from raypaml.training.rejections import read_epochs
from tests.reported import text_of

FIXTURES = Path(__file__).parent / "fixtures" / "d064269"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())

# Other processors add in another order, so that the last bits of gradients differ, and Adam, which divides them by
# their size, passes that on. With older instructions (ATEN_CPU_CAPABILITY=default, ONEDNN_MAX_CPU_ISA=SSE41) weights
# end up to 1e-6 apart, with the same entries rejected; a step moves them by up to 9e-4, the head by 9e-3.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of all folders as the working directory, and one thread, as in the process that wrote them."""
    with tarfile.open(FIXTURES / "folders.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    assert list(tmp_path.rglob("*unfinished*")) == []


def go_on(name: str) -> tuple[dict[str, Any], list[str]]:
    """Train a stopped run to its end, as the command with its --name does; the result, and what it said."""
    config = stored_config(Path(name))
    assert config is not None
    job = prepare_job(config, lambda _: None)
    claim(job.folder, job.config, job.data)
    said = list[str]()

    def report(event: Event) -> bool:
        said.append(text_of(event))
        return False

    assert train(job.config, job.data.address, job.folder, torch.device("cpu"), report)
    return conclude_run(job), said


def newest(name: str) -> Path:
    valid, damaged = valid_checkpoints(Path(name) / "checkpoints")
    assert damaged == []
    return valid[-1]


def corrections(name: str) -> pa.Table:
    return pq.read_table(newest(name) / "corrections.parquet")


def rejected(name: str) -> dict[str, list[int]]:
    index = open_folder(Path("data")).splits["train"]
    return {str(epoch): entries.tolist() for epoch, entries in read_epochs(Path(name), index)}


def look_at(tensor: torch.Tensor, shown: int) -> dict[str, Any]:
    """The Euclidean norm of a tensor, and so many values of it, evenly spaced."""
    flat = tensor.double().flatten()
    places = np.linspace(0, len(flat) - 1, shown).astype(int)
    return {"norm": flat.norm().item(), "values": [flat[place].item() for place in places]}


def agree(found: Any, expected: Any, where: str = "") -> None:
    """Everything expected is there: numbers within the tolerance, counts, names and all else exactly."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            agree(found[name], value, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            agree(found[number], value, f"{where}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE), where
    else:
        assert found == expected, where


def test_every_setting_that_came_later_says_what_it_was_before() -> None:
    groups = json.loads(Path("run/config.json").read_text())["config"]
    then = {name for group in groups.values() if isinstance(group, dict) for name in group}
    assert {*TrainConfig().flat()} - then - {*EXECUTION_FIELDS} == {*EARLIER}


@pytest.mark.parametrize("name", ["run", "run_cp"])
def test_a_stopped_run_goes_on_to_the_same_end(name: str) -> None:
    expected, before = EXPECTED[name], rejected(name)
    result, said = go_on(name)
    assert "continues from epoch 3, step 1 with 1 worker" in said  # not from the start, to the same end
    found = rejected(name)
    assert found == expected["rejected"]
    assert found.items() > before.items()
    assert newest(name).name == "0004-000000"
    weights = load_file(newest(name) / "model.safetensors")
    assert weights.keys() == expected["weights"].keys()
    for tensor, looks in expected["weights"].items():
        agree(look_at(weights[tensor], len(looks["values"])), looks, tensor)
    agree(read_history(Path(name)), expected["history"])
    agree(result, expected["result"])
    assert json.loads(Path(name, "result.json").read_text()) == result
    if name == "run_cp":  # `finished` is this run, gone on with by d064269
        assert corrections("run_cp").equals(corrections("finished"))


def test_a_finished_run_is_evaluated_to_the_same_entries(capfd: pytest.CaptureFixture[str]) -> None:
    parts = Path("finished/predictions/test")
    before = {path.name: pq.read_table(path) for path in parts.glob("*.parquet")}
    assert evaluate.main(["finished"]) == 0
    assert "1 of 1 parts are there already" in capfd.readouterr().err
    Path("data").rename("moved")
    assert evaluate.main(["finished", "--data", "moved", "--out", "again"]) == 0
    assert {path.name for path in Path("again").glob("*.parquet")} == before.keys()
    for name, expected in before.items():
        found = pq.read_table(Path("again", name))
        assert found.schema.equals(expected.schema)
        for column in expected.column_names:
            if column in ("P", "N"):
                np.testing.assert_allclose(found[column].to_numpy(), expected[column].to_numpy(), atol=TOLERANCE)
            else:
                assert found[column].equals(expected[column]), column


def test_its_predictions_aggregate_to_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Path(__file__).parents[1] / "tools" / "aggregate_map.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "finished", "--json", "figures.json"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(tool), run_name="__main__")
    assert stopped.value.code == 0
    agree(json.loads(Path("figures.json").read_text()), EXPECTED["aggregate"])


def test_a_finished_run_is_concluded_to_the_same_result() -> None:
    before = json.loads(Path("finished/result.json").read_text())
    config = stored_config(Path("finished"))
    assert config is not None
    Path("finished").rename("elsewhere")
    job = Job(config.override({"name": "elsewhere"}), open_folder(Path("data")), Path("elsewhere"))
    agree(conclude_run(job), before)
    assert Path("elsewhere/report.html").is_file()


@pytest.mark.parametrize("model", ["export", "finished"])
def test_an_export_and_its_run_predict_the_same_classes(model: str) -> None:
    assert predict.main([model, "data/test-000000.tar", "--top", "3", "--out", "answers.jsonl"]) == 0
    found = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(found) == 20
    agree(found[:5], EXPECTED["predict"])


def test_an_export_is_loaded_for_one_picture() -> None:
    first = EXPECTED["predict"][0]
    with tarfile.open("data/test-000000.tar") as shard:
        picture = shard.extractfile(Path(first["image"]).name)
        assert picture
        found = raypaml.load("export").predict(Image.open(picture), top=3)
    agree([{"class": one.class_id, "name": one.name, "score": one.score} for one in found], first["classes"])


def test_a_run_is_exported_to_the_same_weights() -> None:
    assert export.main(["finished", "--out", "again", "--formats", "safetensors"]) == 0
    again, before = (load_file(f"{folder}/model.safetensors") for folder in ("again", "export"))
    assert {name: weight.numpy().tobytes() for name, weight in again.items()} == {
        name: weight.numpy().tobytes() for name, weight in before.items()
    }
    cards = [json.loads(Path(folder, "card.json").read_text()) for folder in ("again", "export")]
    agree(*(card | {"weights": ""} for card in cards))  # of the file, whose header says more now
