"""`raypaml.Run` and `raypaml.load` as a program uses them: what they give, and what they raise."""

from __future__ import annotations

import contextlib
import json
import rlcompleter
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import raypaml
from raypaml import report
from raypaml.data.batches import Reader
from raypaml.data.data_folder import open_folder
from raypaml.evaluation.summary import table
from raypaml.inference.model_card import digest
from raypaml.recipes import recipe
from raypaml.runs.run_flags import parse_run
from raypaml.runs.run_settings import configured
from raypaml.train import parse


@pytest.fixture
def run(trained: tuple[Path, str]) -> raypaml.Run:
    return raypaml.Run.open(trained[0], progress=False)


def test_a_run_has_its_records_and_figures(run: raypaml.Run, trained: tuple[Path, str]) -> None:
    assert (run.folder, run.name, run.is_finished, run.stopped) == (trained[0], "run", True, None)
    assert run.config.optim.epochs == 2
    assert run.records["epoch"].to_pylist() == [0, 1]
    assert set(run.records.column_names) >= {"loss", "validation_mean_ap", "rejected", "validation_groups_G5"}
    assert run.result is not None
    assert table(run.result) == trained[1]
    assert run.best_checkpoint.parent == run.folder / "checkpoints"
    best = max(run.records["validation_mean_ap"].to_pylist())
    figures = f"validation mAP {100 * best:.2f} at best, test mAP {100 * run.result['mean_ap']:.2f}"
    assert repr(run) == f"<Run {run.folder}: digits, ll_r, 2 of 2 epochs, {figures}>"


def test_a_run_is_used_as_by_the_commands(
    run: raypaml.Run, tmp_path: Path, evaluated_digits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    predicted = raypaml.Run.open(copy, progress=False).evaluate()
    assert run.result is not None
    assert predicted.figures["mean_ap"] == run.result["mean_ap"]
    group, ap = (predicted.classes[name].to_numpy() for name in ("class_group", "ap"))
    assert [np.nanmean(ap[group == g]) for g in range(1, 6)] == pytest.approx(list(run.result["groups"].values()))
    assert f"600 images, mAP {100 * run.result['mean_ap']:.2f}" in repr(predicted)
    folder = open_folder(evaluated_digits)
    picture = tmp_path / "a.png"
    pixels = Reader(folder.shards, folder.splits["test"], ()).image(0)
    Image.fromarray(pixels).save(picture)
    answers = run.predict(picture, top=2)
    assert answers.table is not None
    assert answers.table["image"].to_pylist() == [str(picture)] * 2
    assert [one.class_id for one in run.load().predict(pixels, top=2)] == answers.table["class"].to_pylist()
    assert run.audit(top=5, out=tmp_path / "audit").candidates.num_rows == 5
    assert run.explain(limit=32, rows=2, out=tmp_path / "maps").pairs.num_rows > 0
    (exported,) = run.export(tmp_path / "export", formats=["safetensors"])
    assert (exported.path, exported.difference) == (tmp_path / "export" / "model.safetensors", 0)
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")


def test_a_model_takes_pictures_in_every_form(run: raypaml.Run, tmp_path: Path) -> None:
    model = run.load()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    answer = model.predict(picture)
    alpha = np.full((64, 64, 1), 255, np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for same in (tmp_path / "a.png", pixels, np.concatenate([pixels, alpha], 2), tensor):
        assert model.predict(same) == answer
    for several in ([picture, pixels], pixels[None].repeat(2, 0), torch.stack([tensor, tensor]), iter([tensor] * 2)):
        assert model.predict(several) == model.predict(
            [picture, picture]
        )  # whose last bits are those of a batch of two
    assert model.predict(pixels[..., 0]) == model.predict(picture.getchannel(0))
    maps, last = model.map(pixels), answer[0]
    for name in (last.class_id, last.name):
        assert np.array_equal(model.map(picture, name), maps[model.card.class_ids.index(last.class_id)])
    for asked, said in (({"top": 0}, "top=0: must be at l"), ({"threshold": 50}, "threshold=50: a probability, must")):
        with pytest.raises(raypaml.UserError, match=said):
            model.predict(pixels, **asked)
    with pytest.raises(raypaml.UserError, match=r"a picture of \[0, 64, 3\] has no pixels"):
        model.predict(pixels[:0])
    for wrong in (pixels.astype(float), pixels.T, tensor.float(), pixels[..., :2]):
        with pytest.raises(raypaml.UserError, match=r"give a PIL image.*, not (torch\.)?(uint8|float)"):
            model.predict(wrong)
    with pytest.raises(raypaml.UserError, match=f"no such class; did you mean '{last.name}'"):
        model.map(picture, last.name + "x")


def test_what_cannot_be_is_a_user_error(run: raypaml.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()  # in which the system looks for a name
    refused: list[tuple[Any, str]] = [
        (lambda: raypaml.Run.open(tmp_path), "neither the folder of a run"),
        (lambda: raypaml.Run.train("digit"), r"recipe 'digit': no such recipe; did you mean 'digits'\?"),
        (lambda: raypaml.Run.train("digits", epoch=3), r"epoch=3: no such setting; did you mean 'epochs'\?"),
        (lambda: raypaml.Run.train("digits", epochs="3"), "epochs='3': must be int, not str"),
        (lambda: raypaml.Run.train("digits", lr=-1, progress=False), "lr=-1.0: must be above 0"),
        (lambda: raypaml.Run.train("digits", threads=0, progress=False), "threads=0: reproducible gradients depend"),
        (lambda: raypaml.Run.train("digits", flip=1), "flip=1: must be bool, not int"),
        (lambda: raypaml.Run.train("digits", scheme=None), "scheme=None: must be str, not NoneType"),
        (lambda: raypaml.Run.train("digits", name="..", progress=False), r"name='\.\.': must be the name of"),
        (lambda: raypaml.Run.train("digits", storage="file:///x"), "storage=file:///x: give the path alone, .* /x"),
        (lambda: raypaml.Run.train("digits", storage="file:/x"), "storage=file:/x: give the path alone, such as /x"),
        (lambda: raypaml.Run.train("digits", name="a/b", progress=False), "name='a/b': must be the name of one folder"),
        (lambda: raypaml.Run.train("digits", name="a\x1bb", progress=False), r"name='a\\x1bb': holds a sign that"),
        (lambda: raypaml.Run.train("digits", name=300 * "a", progress=False), "has 300 bytes; give at most 240"),
        (lambda: raypaml.Search.run("digits", name="CON", progress=False), "name='CON': is a name of a device"),
        (lambda: raypaml.Run.train("digits", storage="", progress=False), "storage='': must not be empty"),
        (lambda: raypaml.Run.train("digits", storage="s3://", progress=False), "s3://: names no bucket; give s3"),
        (lambda: raypaml.Run.train("digits", storage="gs:///x", progress=False), "gs:///x: names no bucket"),
        (lambda: raypaml.Run.train("digits", storage="s3:/x", progress=False), "s3:/x: an address has two slashes"),
        (lambda: raypaml.Run.train("digits", storage=__file__, progress=False), f"storage={__file__}: a file; give a"),
        (lambda: raypaml.Run.train("digits", storage="a\nb", progress=False), r"storage='a\\nb': 'a\\nb' holds a sign"),
        (lambda: run.evaluate("test", choose_alpha=True), "alpha is chosen on validation alone"),
        (lambda: run.predict(tmp_path / "none.png"), "no such file or folder"),
        (lambda: run.explain(show="best", limit=1), "show='best': must be one of spread, high, low, errors"),
        (lambda: run.audit(top=0), "top=0"),
        (lambda: raypaml.Run.open(run.best_checkpoint).audit(), f"the best one of a run is audited, give {run.folder}"),
        (lambda: run.audit(device="gpu"), "device='gpu': must be auto, cpu or cuda"),
        (lambda: run.predict([], device="cuda:1"), "device='cuda:1': must be auto, cpu or cuda"),
        (lambda: run.load(device="gpu"), "device=gpu: Expected one of cpu, cuda"),
        (lambda: run.export(formats=["tf"]), "'tf' is not a format"),
        (lambda: run.export(formats="tf"), "formats=tf: 'tf' is not a format"),
        (lambda: run.explain(limit=-1), "limit=-1: must be at least 0"),
        (lambda: run.explain(classes="red"), "classes='red': no such class"),
        (lambda: run.explain(beside=tmp_path), f"{tmp_path}: neither the folder of a run"),
    ]
    for call, message in refused:
        with pytest.raises(raypaml.UserError, match=message):
            call()


def test_the_report_of_a_run_given_by_a_checkpoint_is_where_it_says(
    run: raypaml.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(raypaml.Run, "report", lambda run, **_: run.result)
    assert report.main([str(run.best_checkpoint)]) == 0
    assert capsys.readouterr().out.endswith(f"\nReport: {run.folder / 'report.html'}\n")


def test_a_run_that_is_not_trained_to_its_end_gets_no_result(run: raypaml.Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    record = json.loads((run.folder / "config.json").read_text())
    record["config"]["optim"]["epochs"] = 3
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    (tmp_path / "run" / "result.json").unlink()
    begun = raypaml.Run.open(tmp_path / "run", progress=False)
    with pytest.raises(raypaml.UserError, match=f"run: 2 of 3 epochs .*train --name run --storage {tmp_path}, which"):
        begun.report()
    (begun.folder / "metrics.jsonl").unlink()
    with pytest.raises(raypaml.UserError, match="run: 0 of 3 epochs are trained"):
        begun.report()
    assert not begun.is_finished


def test_settings_in_python_are_those_of_flags(tmp_path: Path) -> None:
    flags = ["digits", "--scheme", "ll_ct", "--epochs", "3", "--alpha", "2", "--data", "x", "--no-reproducible"]
    settings: dict[str, Any] = {"scheme": "ll_ct", "epochs": 3, "alpha": 2, "data": Path("x"), "reproducible": False}
    asked = configured("digits", settings)
    config, _ = parse(flags)
    assert (asked, asked.config) == (parse_run(flags, "train", "")[0], config)
    assert configured(recipe("digits"), settings).config == config
    of_a_table = settings | {"epochs": np.int64(3), "alpha": np.float32(2), "reproducible": np.False_}
    assert configured("digits", of_a_table).config == config


def test_another_run_may_be_named_by_its_object(run: raypaml.Run, tmp_path: Path) -> None:
    assert configured("digits", {"from_run": run}).config.model.from_run == str(run.folder)
    assert raypaml.load(run).card.origin["run"] == run.name
    with pytest.raises(raypaml.UserError, match=f"{tmp_path}: neither the folder of a run"):
        run.explain(against=run, beside=[run, tmp_path])
    run.export(tmp_path / "export", formats="safetensors")
    with pytest.raises(raypaml.UserError, match="export: an export; give the run that it was made from"):
        raypaml.Run.train("digits", from_run=tmp_path / "export", data=run.config.data.data, progress=False)


def scores(run: raypaml.Run, folder: Path) -> list[float]:
    """Of all classes for a picture, by `predict`; those of the model as it lies on the disk."""
    picture = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(picture)
    answers = run.predict(picture, top=99).table
    assert answers is not None
    found = [float(score) for score in answers["score"].to_pylist()]
    assert found == pytest.approx([one.score for one in run.load().predict(picture, top=99)], abs=1e-6)
    return found


def test_another_run_in_the_same_folder_is_predicted_and_evaluated_anew(
    trained: tuple[Path, str], tiny_digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "a")
    run = raypaml.Run.open(tmp_path / "a", progress=False)
    before, figures = scores(run, tmp_path), run.evaluate(data=tiny_digits, out=tmp_path / "first").figures
    checkpoint = run.best_checkpoint
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: tensor.flip(0) if name == "head.weight" else tensor for name, tensor in weights.items()},
        checkpoint / "model.safetensors",
    )
    marker = checkpoint / "COMMITTED"
    digests = json.loads(marker.read_text()) | {"model.safetensors": digest(checkpoint / "model.safetensors")}
    marker.write_text(json.dumps(digests))
    assert run.best_checkpoint == checkpoint
    assert scores(run, tmp_path) != before
    assert run.evaluate(data=tiny_digits, out=tmp_path / "second").figures != figures


def readme_example(number: int) -> str:
    """The code of the page of the package about runs and searches in a program."""
    page = (Path(raypaml.__file__).parent / "README.md").read_text()
    return page.partition("## A run in a program")[2].split("```python\n")[number].partition("```")[0]


@pytest.fixture(scope="module")
def of_the_readme(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> raypaml.Run:
    """The run of the example in the page of the package, shortened; one test goes on with it."""
    short = f"epochs=1, warmup_epochs=1, progress=False, data={str(tiny_digits)!r}"
    given: dict[str, Any] = {"raypaml": raypaml}
    with contextlib.chdir(tmp_path_factory.mktemp("readme")):
        Image.new("RGB", (80, 60)).save("picture.jpg")
        exec(readme_example(1).replace("epochs=3", short), given)
        assert given["run"].folder.parent == Path.cwd() / "runs"
    return raypaml.Run.open(given["run"].folder, progress=False)


def test_the_example_of_the_readme_trains_evaluates_and_exports(of_the_readme: raypaml.Run) -> None:
    assert of_the_readme.is_finished
    assert of_the_readme.records.num_rows == 1
    for left in ("predictions/validation/vocabulary.csv", "export/model.safetensors"):
        assert (of_the_readme.folder / left).is_file()


def test_a_run_of_a_program_goes_on_and_is_predicted_anew(
    of_the_readme: raypaml.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = of_the_readme
    settings: dict[str, Any] = {"storage": run.folder.parent, "name": run.name, "workers": 1, "progress": False}
    first, before = run.best_checkpoint, scores(run, tmp_path)
    assert raypaml.Run.train("digits", epochs=2, **settings).records.num_rows == 2
    assert run.best_checkpoint != first
    assert scores(run, tmp_path) != before
    with pytest.raises(raypaml.UserError, match=r"the run was started with alpha=5.0 \(asked: 2.0\)"):
        raypaml.Run.train("digits", alpha=2, **settings)
    assert capfd.readouterr() == ("", "")


def test_a_notebook_completes_the_names_of_the_package() -> None:
    code = "import rlcompleter, sys, raypaml; found = dir(raypaml); print('torch' in sys.modules, *raypaml.__all__); "
    code += "print(*{*found} ^ {*raypaml.__all__, '__version__'})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names, differ = said.splitlines()
    assert names.split()[0] == "False", "listing the names imports torch"
    assert {"Run", "Search", "load", "Callback", "boostlu"} <= set(names.split())
    assert not differ
    assert "raypaml.Run(" in str(rlcompleter.Completer({"raypaml": raypaml}).attr_matches("raypaml.Ru"))
