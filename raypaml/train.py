"""`python -m raypaml.train`: a training run from its command line to its report, on a laptop or a cluster."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.config import RunConfig, TrainConfig
from raypaml.flags import Parser, add_flags, run_command
from raypaml.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from raypaml.data.folder import DataFolder

PROG = "python -m raypaml.train"
ABOUT = "Train a multi-label image classifier from partial labels: CAM head, BoostLU, large-loss rejection."


@dataclass(frozen=True)
class Job:
    """A checked run, ready to start."""

    config: TrainConfig
    data: DataFolder
    folder: Path


def parse(argv: Sequence[str]) -> TrainConfig:
    """The configuration asked for: recipe, file, or stored one of a run that is continued; flags over it."""
    argv = spelled_out(argv)
    asked = vars(_own_parser(TrainConfig()).parse([a for a in argv if a not in ("-h", "--help")]))
    base = base_config(asked)
    values = vars(_own_parser(base).parse(argv))  # once more, so that --help shows this recipe's values
    return base.override({name: value for name, value in values.items() if name not in ("recipe", "config", "plan")})


def spelled_out(argv: Sequence[str]) -> list[str]:
    """`--workers 2:8` written out: `--min-workers 2 --workers 8`."""
    return re.sub(r"--workers[= \0](\d+):(\d+)", "--min-workers\0\\1\0--workers\0\\2", "\0".join(argv)).split("\0")


def parser(base: TrainConfig, prog: str = PROG, about: str = ABOUT) -> Parser:
    """Recipe, `--config` and a flag for every field; [values] are those of `base`."""
    found = Parser(prog=prog, description=about, epilog="Values in [brackets] are the recipe's.")
    found.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} [digits]")
    about_config = "best.json of a search or config.json of a run, instead of a recipe; flags win"
    found.add_argument("--config", metavar="FILE", help=about_config)
    for _, group in base.groups():
        add_flags(found, group)
    return found


def _own_parser(base: TrainConfig) -> Parser:
    found = parser(base)
    about_plan = "print parameters, map sizes, memory and the images per second needed; start nothing"
    found.add_argument("--plan", action="store_true", default=argparse.SUPPRESS, help=about_plan)
    return found


def base_config(asked: dict[str, Any]) -> TrainConfig:
    """What the flags are laid over: the file given, or the stored configuration of the run named, or the recipe."""
    from raypaml.training.run_folder import open_run, read_config, stored_config

    base = None
    if asked["config"]:
        where = Path(asked["config"])
        base = read_config(where).override({"name": "", "storage": RunConfig.storage, "address": ""})
    elif asked.get("name"):
        where = open_run(asked.get("storage", RunConfig.storage), asked["name"])
        base = stored_config(where)
    if base is None:
        return recipe(asked["recipe"] or "digits")
    if asked["recipe"] not in (None, base.recipe):
        remedy = "leave the recipe out" if asked["config"] else "use another --name"
        raise ValueError(f"{where}: the run was started with recipe {base.recipe}, asked: {asked['recipe']}; {remedy}")
    return base


def prepare(config: TrainConfig, say: Callable[[str], None]) -> Job:
    """Check everything that can be checked before any worker starts."""
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.data.plan import check_world_size, default_lanes
    from raypaml.model.backbones import check_backbone
    from raypaml.training.drift import make_probe
    from raypaml.training.memory import memory_of
    from raypaml.training.models import check_model
    from raypaml.training.run_folder import check_same_run, new_name, open_run

    config.check()
    check_backbone(config.model.backbone)
    check_world_size(config.run.workers, config.data.lanes or default_lanes(config.data.global_batch_size))
    data = open_folder(resolve_data(config.data.data, say), **config.data.opening)
    memory_of(config, data)
    make_probe(config, data, "cpu")
    check_model(config, data, say)
    if config.optim.feature_cache not in ("run", "off"):  # the same folder for every worker, wherever it stands
        config = config.override({"feature_cache": str(Path(config.optim.feature_cache).absolute())})
    config = config.override({"name": config.run.name or new_name(config)})
    folder = open_run(config.run.storage, config.run.name)
    check_same_run(folder, config, data)
    return Job(config, data, folder)


def plan(config: TrainConfig) -> str:
    """What the run would need, from its configuration and its data; nothing is started, and no weights are loaded."""
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.data.plan import check_world_size, default_lanes
    from raypaml.training.estimate import describe, estimate

    config.check()
    check_world_size(config.run.workers, config.data.lanes or default_lanes(config.data.global_batch_size))
    data = open_folder(resolve_data(config.data.data, lambda text: print(text, file=sys.stderr)), **config.data.opening)
    return describe(config, estimate(config, data))


def conclude(job: Job) -> dict[str, Any]:
    """Write `result.json` and `report.html` from what the run left; returns the result."""
    from raypaml.predictions.parts import check_vocabulary, open_set
    from raypaml.reports.evaluation import evaluate
    from raypaml.reports.html import write_report
    from raypaml.reports.result import result
    from raypaml.training.explaining import explain_some
    from raypaml.training.mirror import Mirror
    from raypaml.training.models import tested_model
    from raypaml.training.run_folder import read_history, write_json

    mirror = Mirror.of(job.config.run.storage, job.folder)
    if mirror:
        mirror.pull_checkpoints()
        mirror.pull("metrics.jsonl", "skipped.jsonl", "predictions", "rejected")
    predictions = open_set(job.folder / "predictions" / "test")
    check_vocabulary(predictions, job.data.vocabulary, str(job.data.path))
    history = read_history(job.folder)
    figures = result(evaluate(predictions, job.data.vocabulary), job.config, history)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    some = explain_some(model, job.data, "test", skip_broken=job.config.data.skip_budget > 0)
    write_report(job.folder, job.config, job.data, model, figures, history, some)
    write_json(job.folder / "result.json", figures)
    if mirror:
        mirror.push("report.html", "result.json")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, report."""
    from raypaml.fit import fit
    from raypaml.reports.progress import Display
    from raypaml.reports.result import table

    argv = sys.argv[1:] if argv is None else argv
    config = parse(argv)
    if "--plan" in argv:
        print(plan(config))
        return 0
    with Display() as display:
        job = prepare(config, display.say)
        if not (job.folder / "result.json").is_file():
            fit(job, PROG, display)
    figures = conclude(job)
    print(f"{table(figures)}\n\nReport: {job.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
