"""Trains the papers' schemes on digits with several seeds, and writes a page that says which of their claims hold.

    python tools/papers/experiment.py                 # what `make experiment` does
    python tools/papers/experiment.py --seeds 0,1 --epochs 18 --jobs 1
    python tools/papers/experiment.py --quick         # a few minutes, to try the page; its figures mean nothing
    python tools/papers/experiment.py --page-only     # writes the page from the runs that have finished

It trains one seed after the other and writes the page after each. The same command continues after an interruption.
Every run has one process and one thread, without the exact sums of `--reproducible`. The schemes that reject start from
the warm-up of the run of `an` with the same alpha and seed, because until the first rejection they would be equal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raypaml.cli import Parser, run_command
from raypaml.config import TrainConfig
from raypaml.data.digits import NUM_SCENES
from raypaml.runs.run_files import CONFIG
from raypaml.writable import check_writable
from tools.papers.compare_schemes import train_alone
from tools.papers.experiment_runs import (
    ALPHAS,
    EPOCHS,
    HIDINGS,
    LATER,
    SWEEP,
    SWEEP_SEEDS,
    Setting,
    compare,
    comparison,
    folder_of,
    is_finished,
    measure,
    model_of,
)

if TYPE_CHECKING:
    from tools.papers.experiment_figures import Findings
    from tools.papers.experiment_page import Looks

PROG = "python tools/papers/experiment.py"
LOOKED_AT = (
    *(("full", "none"), ("an", "none"), ("an", "inference")),
    *(("an", "training"), ("ll_r", "none"), ("ll_r", "training")),
)
"""The rows whose maps the gallery shows side by side."""
QUICK = {"seeds": "0,1", "epochs": 3, "scenes": 960, "images": 60}


def beside_each_other(jobs: int, call: Callable[..., Any], *arguments: Iterable[Any]) -> None:
    """Makes the calls in processes of their own, `jobs` at a time."""
    calls = list(zip(*arguments, strict=True))
    if calls:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(call, *zip(*calls, strict=True)))


# --- The page ---------------------------------------------------------------------------------------------------------


def collect(setting: Setting, hiding: str, seeds: Sequence[int]) -> Findings:
    """Collects the figures of all finished runs of one way of hiding labels."""
    from raypaml.data.data_folder import open_folder
    from tools.papers.experiment_figures import SCHEMES, Findings

    groups = open_folder(setting.data(hiding)).vocabulary.class_group
    collected: Any = (defaultdict(dict), defaultdict(dict), defaultdict(dict))
    for scheme in SCHEMES:
        for seed in seeds:
            for alpha, mode in zip(ALPHAS, ("none", "training"), strict=True):
                config = setting.config(hiding, scheme, alpha, seed)
                if not is_finished(config):
                    continue
                by_alpha, history, more = _read(config, setting.reference(seed, seeds), groups)
                figures, curves, histories = (each[scheme, mode] for each in collected)
                curves[seed] = {a: means["All"] for a, means in by_alpha.items()}
                histories[seed] = history
                figures[seed] = by_alpha[alpha] | more
                if mode == "none":
                    collected[0][scheme, "inference"][seed] = by_alpha[ALPHAS[-1]]
    return Findings(hiding, *collected)


def _read(config: TrainConfig, reference: TrainConfig, groups: Any) -> tuple[dict[float, dict[str, float]], Any, Any]:
    """Returns a run's mAP of each class group and of all, by alpha; its epochs; its figures of rejection and maps."""
    from raypaml.metrics.average_precision import group_means, mean_ap
    from raypaml.runs.history import read_history, rejection_quality
    from tools.papers.experiment_figures import map_figures

    stored = json.loads((folder_of(config) / "ap.json").read_text())
    by_class = {float(alpha): np.array(ap, np.float64) for alpha, ap in stored.items()}
    by_alpha = {alpha: group_means(ap, groups) | {"All": mean_ap(ap)} for alpha, ap in by_class.items()}
    history, maps_file = read_history(folder_of(config)), comparison(config, reference)
    maps = map_figures(json.loads(maps_file.read_text())) if maps_file.is_file() else {}
    quality = {name: share for name, share in rejection_quality(history).items() if share is not None}
    return by_alpha, history, quality | maps


def collect_sweep(setting: Setting, seeds: Sequence[int]) -> dict[float, dict[int, dict[str, float]]]:
    """Collects the figures of the sweep by delta_rel and seed, for the seeds whose runs have all finished."""
    from raypaml.data.data_folder import open_folder

    groups = open_folder(setting.data(HIDINGS[0])).vocabulary.class_group
    figures: dict[float, dict[int, dict[str, float]]] = defaultdict(dict)
    for seed in seeds[:SWEEP_SEEDS]:
        configs = [setting.config(HIDINGS[0], "ll_r", ALPHAS[-1], seed, times) for times in (*SWEEP, 1.0)]
        for config in configs if all(map(is_finished, configs)) else []:
            by_alpha, _, more = _read(config, setting.reference(seed, seeds), groups)
            figures[config.loss.delta_rel][seed] = by_alpha[ALPHAS[-1]] | more
    return figures


def look(setting: Setting, hiding: str, seeds: Sequence[int], images: int) -> Looks | None:
    """Compares the maps of the first seed's models: AN with full labels, and LOOKED_AT side by side.

    The result is None if not all of these runs have finished.
    """
    from raypaml.explanations.gallery import of_every_group, side_by_side
    from tools.papers.claims import title
    from tools.papers.experiment_page import Looks

    trained = {"none": ALPHAS[0], "inference": ALPHAS[0], "training": ALPHAS[-1]}
    configs = {row: setting.config(hiding, row[0], trained[row[1]], seeds[0]) for row in LOOKED_AT}
    reference = setting.reference(seeds[0], seeds)
    if not all(map(is_finished, [reference, *configs.values()])):
        return None
    models = {title(row): model_of(config) for row, config in configs.items()}
    models[title(("an", "inference"))].alpha = ALPHAS[-1]
    pairs, data = compare(configs["an", "none"], reference, images)
    shown = of_every_group(pairs, data.vocabulary.class_group)
    return Looks(("AN", "full labels"), pairs, side_by_side(models, data, "test", shown))


def write(setting: Setting, seeds: Sequence[int], asked: Any) -> Path:
    """Measures the finished runs that have not been measured, and writes the page of all finished runs."""
    from tools.papers.experiment_page import write_experiment_page

    configs = [config for stage in setting.stages(list(seeds)) for config in stage if is_finished(config)]
    references = [setting.reference(config.run.seed, seeds) for config in configs]
    beside_each_other(asked.jobs, measure, configs, references, [asked.images] * len(configs))
    findings = [collect(setting, hiding, seeds) for hiding in HIDINGS]
    looks = {hiding: seen for hiding in HIDINGS if (seen := look(setting, hiding, seeds, asked.images))}
    about, by_delta = _about(setting, configs, asked), collect_sweep(setting, seeds)
    write_experiment_page(setting.storage, about, findings, by_delta, looks)
    return setting.storage / "experiment.html"


def _about(setting: Setting, configs: Sequence[TrainConfig], asked: Any) -> dict[str, Any]:
    """Describes what was run, in words and numbers."""
    records = [json.loads((folder_of(config) / CONFIG).read_text()) for config in configs]
    hours = sum(map(_own_seconds, configs)) / 3600
    commits = sorted({record["commit"] for record in records})
    deltas = [setting.delta_rel(scheme) for scheme in ("ll_r", "ll_ct", "ll_cp")]
    text = (
        f"{len(configs)} runs of the recipe digits, {setting.scenes:,} training scenes, {setting.epochs} epochs of "
        f"which {setting.warmup_epochs} are warm-up (the recipe has 18 and 6). delta_rel is {deltas[0]:g} % per epoch "
        f"for LL-R, {deltas[1]:g} % for LL-Ct and {deltas[2]:g} % for LL-Cp: the recipe's, multiplied to make up for "
        f"the fewer epochs that reject. Every run has one thread and is not --reproducible. Training took {hours:.1f} "
        f"h of wall-clock time; rejecting schemes start from the warm-up of AN's runs. Commit {', '.join(commits)}."
    )
    cost = {"runs": len(configs), "training_hours": hours, "commits": commits, "images": asked.images}
    return {"text": text, "epochs": setting.epochs, "scenes": setting.scenes, "delta_rel": deltas[0]} | cost


def _own_seconds(config: TrainConfig) -> float:
    """Returns the seconds that this run was trained for, without a warm-up that it took from another run."""
    from raypaml.runs.history import read_history

    history = read_history(folder_of(config))
    shared = history[config.loss.warmup_epochs - 1]["seconds"] if config.loss.scheme in LATER else 0.0
    return float(history[-1]["seconds"] - shared)


# --- The command ------------------------------------------------------------------------------------------------------


def parse() -> tuple[Any, Setting]:
    """Reads the flags; returns them, and the setting that all runs share."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", default="0,1,2,3,4", help="random seeds, with commas between [0,1,2,3,4]")
    add("--epochs", type=int, default=EPOCHS, help=f"epochs of every run, a third of them warm-up [{EPOCHS}]")
    add("--scenes", type=int, default=NUM_SCENES["train"], help="training images [12000]")
    add("--images", type=int, default=500, help="test images on which maps are compared [500]")
    add(
        "--storage",
        type=Path,
        default=Path("runs/experiment"),
        help="folder of the runs and the page [runs/experiment]",
    )
    add("--jobs", type=int, default=2, help="runs that are trained at the same time, one thread each [2]")
    add("--quick", action="store_true", help="two seeds and 3 epochs of 960 images, to try the page")
    add("--page-only", action="store_true", help="train nothing; write the page of the runs that have finished")
    asked = parser.parse()
    if asked.quick:
        vars(asked).update(QUICK)
    return asked, Setting(storage=asked.storage.absolute(), epochs=asked.epochs, scenes=asked.scenes)


def main() -> None:
    """Trains the runs that are missing, and writes the page after each seed."""
    from raypaml.data.data_folder import open_folder
    from raypaml.runs.run_folder import check_same_run

    asked, setting = parse()
    check_writable(setting.storage)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    stages = list(setting.stages(seeds))
    for config in (config for stage in stages for config in stage):
        config.check()
        check_same_run(folder_of(config), config, open_folder(config.data.data))
    for stage in [] if asked.page_only else stages:
        missing = [config for config in stage if not is_finished(config)]
        if missing:
            beside_each_other(asked.jobs, train_alone, missing, [setting.storage / "warmups"] * len(missing))
            if stage[0].loss.scheme in LATER:
                write(setting, seeds, asked)
    print(write(setting, seeds, asked))


if __name__ == "__main__":
    run_command(main, PROG)
