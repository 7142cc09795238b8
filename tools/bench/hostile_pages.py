"""Pages over thousands of classes whose names try to break out of them, for `pages.py` and for tests."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raypaml.api.run import Run
from raypaml.config import TrainConfig
from raypaml.data.data_folder import open_folder
from raypaml.data.shards import Sample, write_dataset
from raypaml.explanations.comparing import REPORT_BATCH, evenly_spaced, explain_steps
from raypaml.explanations.gallery import of_every_group, side_by_side
from raypaml.recipes import recipe
from raypaml.runs.history import History, read_history
from raypaml.runs.models import checkpoint_model, tested_checkpoint
from raypaml.runs.run_folder import read_config
from raypaml.search.search_folder import Outcome, SearchPlan
from raypaml.search.search_page import write_search_page
from raypaml.search.search_result import Verdict
from raypaml.search.spaces import parse_search
from raypaml.search.trials import random_trials
from tools.papers.experiment_figures import MODES, NAMES, SCHEMES, Findings
from tools.papers.experiment_page import Looks, write_experiment_page

LENGTH = 300
"""Characters of every hostile name."""
KINDS = (
    "\"'><img src=x onerror=pwned=1> ' onmouseover=pwned=1 ",
    "</script><script>pwned=1</script><!-- ",
    "\u202e\u2067\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629 ",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 ",
    "one line\nand another\n\u2028",
    "unbroken",
    "{{ 7 }} ${pwned=1} $x^2$ \\u003c &lt; &amp; ",
)
"""What names are filled with: quotes, elements, right to left, emoji, line breaks, no break at all, templates."""
IMAGES = 32
HISTORY_EPOCHS = 18


def hostile_names(count: int) -> list[str]:
    """Different names, each of 300 characters."""
    return [f"{k} {LENGTH * KINDS[k % len(KINDS)]}"[:LENGTH] for k in range(count)]


def hostile_run(folder: Path, classes: int) -> Run:
    """A short run on small noise, of which every image has some of the classes; its name is `run`."""
    ids = [f"/m/{k:04d}" for k in range(classes)]
    (folder / "data").mkdir()
    splits = {split: list(_samples(split, ids)) for split in ("train", "validation", "test")}
    write_dataset(folder / "data", splits, ids, hostile_names(classes))
    values = {"data": str(folder / "data"), "storage": str(folder), "name": "run", "workers": 1, "epochs": 2}
    values |= {"warmup_epochs": 1, "delta_rel": 2.0, "global_batch_size": 16, "lanes": 16}
    return Run.train(recipe("digits").override(values), progress=False)


def _samples(split: str, ids: Sequence[str]) -> Iterator[Sample]:
    share = len(ids) // 25
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer := io.BytesIO(), "JPEG")
        classes = [ids[k] for k in rng.permutation(len(ids))]
        positive, negative = tuple(classes[:share]), tuple(classes[share : 6 * share])
        truth = tuple(classes[: 2 * share]) if split == "train" else None
        yield Sample(key=f"{split}{number}", image=buffer.getvalue(), positive=positive, negative=negative, truth=truth)


def hostile_pages(folder: Path, *, classes: int, listed: int, trials: int, seeds: int) -> dict[str, Path]:
    """The pages of a run, of its maps, its audit, a search around it, and an experiment with its maps.

    Args:
        folder: an empty folder for them.
        classes: number of classes.
        listed: entries of the audit.
        trials: trials of the search.
        seeds: seeds of the experiment.
    """
    run, text = hostile_run(folder, classes), " ".join(hostile_names(len(KINDS)))
    pages = {"run": run.folder / "report.html", "maps": run.explain(out=folder / "maps").page}
    run.audit(top=listed)
    last = read_history(run.folder)[-1]
    history: History = [{**last, "epoch": epoch} for epoch in range(HISTORY_EPOCHS)]
    base = read_config(run.folder / "config.json").override({"name": "search"})
    pages |= {"audit": run.folder / "audit" / "index.html", "search": search_page(base, history, text, trials)}
    looks = {text: _looks(run.folder, text)}
    return pages | {"experiment": experiment_page(folder, history, text, seeds, looks)}


def _looks(folder: Path, text: str) -> Looks:
    """The maps of a run, compared with themselves, and the pictures of classes of every group."""
    config = read_config(folder / "config.json")
    data = open_folder(config.data.data)
    one, other = (checkpoint_model(tested_checkpoint(folder), config.model, len(data.vocabulary)) for _ in range(2))
    steps = evenly_spaced(IMAGES, IMAGES, REPORT_BATCH)
    pairs = explain_steps(one, other, data, "test", steps, torch.device("cpu"))
    names = (f"{text} one", f"{text} other")
    shown = of_every_group(pairs, data.vocabulary.class_group)
    return Looks(names, pairs, side_by_side({names[0]: one, names[1]: other}, data, "test", shown))


def search_page(base: TrainConfig, history: History, text: str, trials: int) -> Path:
    """The page of a search whose trials have this history; the last two have failed with this text, and not begun."""
    spaces = (*parse_search("alpha=1:10,delta_rel=0.05:1", base, {}, None),)
    search = SearchPlan(base=base, spaces=spaces)
    search.folder.mkdir()
    *ended, failed, planned = random_trials(base, spaces, trials, share=3, seed=0)
    outcomes = [Outcome(trial=one, state="finished", history=history, curve={1.0: 0.5, 5.0: 0.6}) for one in ended]
    outcomes += [Outcome(trial=failed, state="failed", error=text), Outcome(trial=planned, state="planned")]
    write_search_page(search, outcomes, Verdict(best=outcomes[1], own=outcomes[0], text=text))
    return search.folder / "report.html"


def experiment_page(folder: Path, history: History, text: str, seeds: int, looks: Mapping[str, Looks]) -> Path:
    """The page of an experiment of random figures, one way of hiding labels of which is called this text."""
    rows = [(scheme, mode) for scheme in SCHEMES for mode in MODES]
    names = (*NAMES, "recall", "precision", "rank_correlation", "scale_ratio", "pointing_game", "chance", "control")
    draw = np.random.default_rng(0).uniform
    figures = {row: {seed: {name: draw(0.4, 0.9) for name in names} for seed in range(seeds)} for row in rows}
    curves = {row: {0: {float(alpha): 0.5 + alpha / 99 for alpha in range(1, 11)}} for row in rows}
    histories: Any = {row: {0: history} for row in rows if "ll_" in row[0]}
    found = [Findings(hiding, figures, curves, histories) for hiding in ("one", text)]
    sweep = {delta: {0: {"All": 0.5, "recall": 0.3, "precision": 0.6}} for delta in (0.05, 0.1)}
    write_experiment_page(folder, {"text": text, "images": 40}, found, sweep, looks)
    return folder / "experiment.html"
