"""`python -m raypaml.train`: Ray Train around `training.loop`, on a laptop or a cluster."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from raypaml.config import TrainConfig
from raypaml.flags import Parser, add_flags, run_command
from raypaml.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from raypaml.cluster import Channel
    from raypaml.data.folder import DataFolder
    from raypaml.reports.progress import Display

PROG = "python -m raypaml.train"
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Job:
    """A checked run, ready to start."""

    config: TrainConfig
    data: DataFolder
    folder: Path


def parse(argv: Sequence[str]) -> TrainConfig:
    """The configuration asked for: recipe, or the stored one of a run that is continued, and the flags over it."""
    asked = vars(_parser(TrainConfig()).parse([a for a in argv if a not in ("-h", "--help")]))
    base = _base(asked["recipe"], Path(asked.get("storage", "runs")) / asked["name"] if asked.get("name") else None)
    values = vars(_parser(base).parse(argv))  # once more, so that --help shows this recipe's values
    for name in ("recipe", "plan"):
        values.pop(name, None)
    return base.override(values)


def _parser(base: TrainConfig) -> Parser:
    about = "Train a multi-label image classifier from partial labels: CAM head, BoostLU, large-loss rejection."
    parser = Parser(prog=PROG, description=about, epilog="Values in [brackets] are the recipe's.")
    parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(RECIPES)} [digits]")
    about_plan = "print parameters, map sizes, memory and the images per second needed; start nothing"
    parser.add_argument("--plan", action="store_true", default=argparse.SUPPRESS, help=about_plan)
    for _, group in base.groups():
        add_flags(parser, group)
    return parser


def _base(name: str | None, folder: Path | None) -> TrainConfig:
    if folder is None or not folder.is_dir():
        return recipe(name or "digits")
    from raypaml.training.run_folder import stored_config

    stored = stored_config(folder)
    if stored is None:
        return recipe(name or "digits")
    if name not in (None, stored.recipe):
        raise ValueError(
            f"{folder}: the run was started with recipe {stored.recipe}, asked: {name}; use another --name"
        )
    return stored


def prepare(config: TrainConfig, say: Callable[[str], None]) -> Job:
    """Check everything that can be checked before any worker starts."""
    from raypaml.data.batches import Reader
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.data.plan import check_world_size, default_lanes
    from raypaml.model.backbones import check_backbone
    from raypaml.training.models import build_model, check_images
    from raypaml.training.run_folder import check_same_run, new_name

    config.check()
    check_backbone(config.model.backbone)
    check_world_size(config.run.workers, config.data.lanes or default_lanes(config.data.global_batch_size))
    data = open_folder(resolve_data(config.data.data, say))
    if config.loss.scheme == "full" and not data.splits["train"].has_truth:
        raise ValueError(f"scheme=full: {data.path} does not know its full labels; choose a partial-label scheme")
    height, width, _ = Reader(data.path, data.splits["train"], ()).image(0).shape
    check_images(build_model(config.model, len(data.vocabulary), say), height, width)
    if config.optim.feature_cache not in ("run", "off"):  # the same folder for every worker, wherever it stands
        config = config.override({"feature_cache": str(Path(config.optim.feature_cache).absolute())})
    if not config.run.name:
        config = config.override({"name": new_name(config)})
    folder = (Path(config.run.storage) / config.run.name).absolute()
    check_same_run(folder, config, data)
    return Job(config, data, folder)


def plan(config: TrainConfig) -> str:
    """What the run would need, from its configuration and its data; nothing is started, and no weights are loaded."""
    from raypaml.data.folder import open_folder, resolve_data
    from raypaml.data.plan import check_world_size, default_lanes
    from raypaml.training.estimate import describe, estimate

    config.check()
    check_world_size(config.run.workers, config.data.lanes or default_lanes(config.data.global_batch_size))
    data = open_folder(resolve_data(config.data.data, print))
    return describe(config, estimate(config, data))


def fit(job: Job, display: Display) -> bool:
    """Run Ray Train; whether training finished, rather than being asked to stop."""
    from raypaml import cluster
    from raypaml.training.run_folder import claim

    run = job.config.run
    display.say(f"run {run.name}: {run.workers} workers, in {job.folder}")
    with cluster.join(run.address, run.workers):
        use_gpu = _use_gpu(job, display)
        claim(job.folder, job.config, job.data)
        channel = cluster.Channel()
        outcome: dict[str, Any] = {}
        thread = threading.Thread(target=_fit_in_thread, args=(job, channel, use_gpu, outcome), daemon=True)
        thread.start()
        with _Signals() as signals:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                signals.forward(channel, display)
                for event in channel.take():
                    display.update(event)
    if "error" in outcome:
        raise outcome["error"]
    if not outcome["finished"]:
        display.say(f"stopped; continue with: {PROG} --name {run.name} --storage {run.storage}")
        raise SystemExit(128 + (signals.received or signal.SIGINT))
    return True


class _Signals:
    """Ctrl-C or SIGTERM once: save and stop; twice: stop at once."""

    def __init__(self) -> None:
        self.received = 0
        self._forwarded = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number

    def forward(self, channel: Channel, display: Display) -> None:
        if self.received and not self._forwarded:
            display.say("stopping after this step, with a checkpoint; once more to stop at once")
            channel.stop()
            self._forwarded = True


def _use_gpu(job: Job, display: Display) -> bool:
    from raypaml import cluster

    run = job.config.run
    if cluster.cpus() < run.workers:
        raise ValueError(
            f"workers={run.workers}: the cluster has {cluster.cpus()} CPUs; use fewer workers or add nodes"
        )
    found = cluster.gpus()
    if run.device == "cuda" and found < run.workers:
        raise ValueError(
            f"device=cuda: {run.workers} workers need a GPU each, the cluster has {found}; use fewer workers"
        )
    if run.device == "auto" and 0 < found < run.workers:
        display.say(f"{found} GPUs for {run.workers} workers: training on the CPU; --workers {found} would use them")
    return run.device != "cpu" and found >= run.workers


def _fit_in_thread(job: Job, channel: Channel, use_gpu: bool, outcome: dict[str, Any]) -> None:
    """Ray's fit in a thread of its own, so that this process's main thread shows progress and takes signals."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={
            "config": job.config,
            "data": job.data.path.absolute(),
            "folder": job.folder,
            "channel": channel,
        },
        scaling_config=ScalingConfig(num_workers=job.config.run.workers, use_gpu=use_gpu),
        # Ray keeps no checkpoint for us: the loop writes and finds its own, alone as in a cluster.
        run_config=RunConfig(name="ray", storage_path=str(job.folder)),
    )
    try:
        outcome["finished"] = bool(trainer.fit().return_value)
    except WorkerGroupError as error:
        outcome["error"] = _as_user_error(error.worker_failures)
    except ControllerError as error:
        outcome["error"] = RuntimeError(f"Ray Train failed: {error}")
    except BaseException as error:
        outcome["error"] = error


def _as_user_error(failures: dict[int, Exception]) -> Exception:
    """What the first failing rank said, without Ray's wrapping."""
    rank, error = min(failures.items())
    cause = getattr(error, "cause", None) or error
    kind = ValueError if isinstance(cause, ValueError | FloatingPointError) else RuntimeError
    said = str(cause)
    return kind(said if said.startswith(f"rank {rank}") else f"rank {rank}: {said}")


def _train_on_worker(settings: dict[str, Any]) -> bool:
    import ray.train
    import ray.train.torch

    from raypaml.training.loop import train

    channel = settings["channel"]
    first = ray.train.get_context().get_world_rank() == 0

    def report(event: dict[str, Any]) -> bool:
        return bool(channel.put(event)) if first else False

    device = ray.train.torch.get_device()
    return train(settings["config"], settings["data"], settings["folder"], device, report)


def conclude(job: Job) -> dict[str, Any]:
    """Write `result.json` and `report.html` from what the run left; returns the result."""
    from raypaml.predictions.parts import check_vocabulary, open_set
    from raypaml.reports.evaluation import evaluate
    from raypaml.reports.html import write_report
    from raypaml.reports.result import result
    from raypaml.training.models import tested_model
    from raypaml.training.run_folder import read_history, write_json

    predictions = open_set(job.folder / "predictions" / "test")
    check_vocabulary(predictions, job.data.vocabulary, str(job.data.path))
    history = read_history(job.folder)
    figures = result(evaluate(predictions, job.data.vocabulary), job.config, history)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    write_report(job.folder, job.config, job.data, model, figures, history)
    write_json(job.folder / "result.json", figures)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, report."""
    from raypaml.reports.progress import Display

    argv = sys.argv[1:] if argv is None else argv
    config = parse(argv)
    if "--plan" in argv:
        print(plan(config))
        return 0
    with Display() as display:
        job = prepare(config, display.say)
        if not (job.folder / "result.json").is_file():
            fit(job, display)
    from raypaml.reports.result import table

    figures = conclude(job)
    print(table(figures))
    print(f"\nReport: {job.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
