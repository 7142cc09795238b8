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

from raypaml.config import RunConfig, TrainConfig
from raypaml.flags import Parser, add_flags, run_command
from raypaml.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from raypaml.cluster import Channel
    from raypaml.data.folder import DataFolder
    from raypaml.reports.progress import Display

PROG = "python -m raypaml.train"
ABOUT = "Train a multi-label image classifier from partial labels: CAM head, BoostLU, large-loss rejection."
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Job:
    """A checked run, ready to start."""

    config: TrainConfig
    data: DataFolder
    folder: Path


def parse(argv: Sequence[str]) -> TrainConfig:
    """The configuration asked for: recipe, file, or stored one of a run that is continued; flags over it."""
    asked = vars(_own_parser(TrainConfig()).parse([a for a in argv if a not in ("-h", "--help")]))
    base = base_config(asked)
    values = vars(_own_parser(base).parse(argv))  # once more, so that --help shows this recipe's values
    return base.override({name: value for name, value in values.items() if name not in ("recipe", "config", "plan")})


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
    from raypaml.training.run_folder import read_config, stored_config

    base = None
    if asked["config"]:
        where = Path(asked["config"])
        base = read_config(where).override({"name": "", "storage": RunConfig.storage, "address": ""})
    elif asked.get("name"):
        where = Path(asked.get("storage", RunConfig.storage)) / asked["name"]
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
    from raypaml.training.run_folder import check_same_run, new_name

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
    data = open_folder(resolve_data(config.data.data, lambda text: print(text, file=sys.stderr)), **config.data.opening)
    return describe(config, estimate(config, data))


def fit(job: Job, display: Display) -> None:
    """Run Ray Train to the end; SystemExit where it was asked to stop."""
    from raypaml import cluster
    from raypaml.training.run_folder import claim

    run = job.config.run
    display.say(f"run {run.name}: {run.workers} workers, in {job.folder}")
    with cluster.join(run.address, run.workers):
        use_gpu = gpu_wanted(run, display.say)
        claim(job.folder, job.config, job.data)
        display.track(job.config, job.folder)
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


def gpu_wanted(run: RunConfig, say: Callable[[str], None]) -> bool:
    """Whether every worker gets a GPU; ValueError where the joined cluster lacks what was asked for."""
    from raypaml import cluster

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
        say(f"{found} GPUs for {run.workers} workers: training on the CPU; --workers {found} would use them")
    return run.device != "cpu" and found >= run.workers


def _fit_in_thread(job: Job, channel: Channel, use_gpu: bool, outcome: dict[str, Any]) -> None:
    """Ray's fit in a thread of its own, so that this process's main thread shows progress and takes signals."""
    try:
        outcome["finished"] = run_workers(job, _train_on_worker, {"channel": channel}, use_gpu=use_gpu)
    except BaseException as error:
        outcome["error"] = error


def run_workers(
    job: Job,
    work: Callable[[dict[str, Any]], bool],
    more: dict[str, Any],
    *,
    use_gpu: bool,
    callbacks: Sequence[Any] = (),
) -> bool:
    """Run `work` on every worker with the job's settings and `more`; returns what rank 0 returned.

    Raises:
        ValueError: what the first failing rank said; RuntimeError where it was not the user's fault.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    settings = {"config": job.config, "data": job.data.address, "folder": job.folder} | more
    trainer = TorchTrainer(
        work,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=job.config.run.workers, use_gpu=use_gpu),
        # Ray keeps no checkpoint for us: the loop writes and finds its own, alone as in a cluster.
        run_config=RunConfig(name="ray", storage_path=str(job.folder), callbacks=list(callbacks)),
    )
    try:
        return bool(trainer.fit().return_value)
    except WorkerGroupError as error:
        raise _as_user_error(error.worker_failures) from None
    except ControllerError as error:
        raise RuntimeError(f"Ray Train failed: {error}") from None


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
    from raypaml.training.explaining import explain_some
    from raypaml.training.models import tested_model
    from raypaml.training.run_folder import read_history, write_json

    predictions = open_set(job.folder / "predictions" / "test")
    check_vocabulary(predictions, job.data.vocabulary, str(job.data.path))
    history = read_history(job.folder)
    figures = result(evaluate(predictions, job.data.vocabulary), job.config, history)
    model = tested_model(job.folder, job.config.model, len(job.data.vocabulary))
    some = explain_some(model, job.data, "test", skip_broken=job.config.data.skip_budget > 0)
    write_report(job.folder, job.config, job.data, model, figures, history, some)
    write_json(job.folder / "result.json", figures)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, report."""
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
            fit(job, display)
    figures = conclude(job)
    print(f"{table(figures)}\n\nReport: {job.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
