"""`python -m raypaml.tune`: Ray Tune over Ray Train; every trial is a run of raypaml.train in a folder of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from raypaml import fit, train
from raypaml.config import TrainConfig
from raypaml.flags import Parser, run_command
from raypaml.search.plan import Trial

if TYPE_CHECKING:
    from raypaml.reports.search_progress import SearchDisplay
    from raypaml.search.folder import Search
    from raypaml.search.proposals import Proposals
    from raypaml.search.queue import Queue

PROG = "python -m raypaml.tune"
ABOUT = "Search fields of a recipe; every trial is a run of raypaml.train. The same command goes on after a kill."
METRIC = "validation_mean_ap"
ALPHAS = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10)  # of the curve at evaluation
REDUCTION = 2  # ASHA: of so many trials that reach a rung, about one goes on (Li et al., MLSys 2020)

# Ray reads these when it is imported or started.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our run folders say it all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0: nothing on stdout
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean what they mean to raypaml.train


# --- What is asked --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> tuple[Any, TrainConfig]:
    """The search's flags, and the configuration it starts from."""
    first = vars(_parser(TrainConfig()).parse([a for a in argv if a not in ("-h", "--help")]))
    base = train.base_config(first).override({"workers": 1})
    values = vars(_parser(base).parse(argv))  # once more, so that --help shows this recipe's values
    fields = base.flat()
    asked = SimpleNamespace(**{name: value for name, value in values.items() if name not in fields})
    for name, least in (("trials", 1), ("share", 1), ("points", 2), ("seeds", 1), ("add", 0)):
        if getattr(asked, name) < least:
            raise ValueError(f"{name}={getattr(asked, name)}: must be at least {least}")
    return asked, base.override({name: value for name, value in values.items() if name in fields})


def _parser(base: TrainConfig) -> Parser:
    from raypaml.search.flags import add_search_flags

    parser = train.parser(base, PROG, ABOUT)
    parser.epilog = "Values in [brackets] are the recipe's, but for workers: a trial has one unless told otherwise."
    add_search_flags(parser)
    return parser


# --- A trial, in a process of the cluster ---------------------------------------------------------------------------


def _run_trial(settings: dict[str, Any], search: Search, use_gpu: bool) -> None:
    """Tune's trainable: a training run, started and watched from here."""
    from raypaml.search.folder import note

    trial = Trial.of(settings)
    (search.run_folder(trial) / "error.json").unlink(missing_ok=True)
    try:
        _train_trial(search, trial, settings["marks"], use_gpu)
    except Exception as error:
        note(search, trial, "error", {"error": str(error)})
        raise


def _train_trial(search: Search, trial: Trial, marks: list[int], use_gpu: bool) -> None:
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from raypaml.predictions.parts import open_set
    from raypaml.reports.evaluation import alpha_curve
    from raypaml.search.folder import outcome
    from raypaml.search.warmup import start_from
    from raypaml.training.run_folder import claim, write_json

    job = train.prepare(search.config(trial), lambda _: None)
    claim(job.folder, job.config, job.data)
    warmups = search.warmups(trial)
    if marks and (shared := start_from(warmups, job.folder, job.config.loss.warmup_epochs)):
        write_json(job.folder / "shared.json", {"epochs": shared})
    found = outcome(search, trial)
    for record in found.history[search.longest_warmup :]:  # for ASHA to judge it by
        tune.report(search.progress(record))
    if found.result:
        return
    more = {"search": search, "warmups": warmups, "marks": marks}
    if fit.run_workers(job, _train_on_worker, more, use_gpu=use_gpu, callbacks=[TuneReportCallback()]):
        predictions = open_set(job.folder / "predictions" / "validation")
        alphas = sorted({*ALPHAS, job.config.model.alpha})
        write_json(job.folder / "alpha_curve.json", alpha_curve(predictions, job.data.vocabulary, alphas))
        train.conclude(job)


def _train_on_worker(settings: dict[str, Any]) -> bool:
    import ray.train
    import ray.train.torch

    from raypaml.search.folder import is_stopped
    from raypaml.search.warmup import keep
    from raypaml.training import loop
    from raypaml.training.run_folder import write_json

    first = ray.train.get_context().get_world_rank() == 0
    if first:
        where = {"host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()}
        write_json(settings["folder"] / "where.json", where)

    def report(event: dict[str, Any]) -> bool:
        if "record" in event:
            epoch = event["record"]["epoch"] + 1
            if first and epoch in settings["marks"]:
                keep(settings["folder"], settings["warmups"], epoch)
            ray.train.report(settings["search"].progress(event["record"]))
        return first and is_stopped(folder)

    config, data, folder = (settings[name] for name in ("config", "data", "folder"))
    return loop.train(config, data, folder, ray.train.torch.get_device(), report, splits=("validation", "test"))


# --- Tune, in this process ------------------------------------------------------------------------------------------


def execute(search: Search, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> None:
    """Run what the queue holds, as much at once as the cluster has room for."""
    from raypaml import cluster  # before ray

    from ray import tune  # isort: skip

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is reported by us, in one line
    run = search.base.run
    use_gpu = fit.gpu_wanted(run, display.say)
    at_once = (cluster.gpus() if use_gpu else cluster.cpus()) // run.workers
    display.say(f"{at_once} at once, each with {run.workers} {'GPUs' if use_gpu else 'CPUs'}")
    scheduler = _scheduler(search, queue)
    trainable = tune.with_parameters(_run_trial, search=search, use_gpu=use_gpu)
    tuner = tune.Tuner(
        # it only watches: the workers that it starts take their CPUs; Tune wants it to take something, so one byte
        tune.with_resources(trainable, {"CPU": 0, "memory": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(queue, proposals),
            scheduler=scheduler,
            max_concurrent_trials=at_once,  # one more would hold its place and wait for workers for ever
            num_samples=-1,
            reuse_actors=False,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(search.folder),
            callbacks=[_watcher(search, queue, proposals, display)],
            verbose=0,
        ),
    )
    tuner.fit()


def _searcher(queue: Queue, proposals: Proposals | None) -> Any:
    from ray.tune.search import Searcher

    class Conductor(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
            if proposals and not queue.waiting:
                proposals.propose()
            trial = queue.next()
            if trial is None:
                return Searcher.FINISHED if queue.is_finished else None
            return trial.settings | {"marks": sorted(queue.marks(trial))}

        def on_trial_complete(self, *_: Any, **__: Any) -> None: ...  # the watcher sees to it

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # Tune wants a file; a restart reads the run folders

    return Conductor(metric=METRIC, mode="max")


def _scheduler(search: Search, queue: Queue) -> Any:
    """ASHA, told what earlier sessions measured, from the middle of the shortest schedule on: curves cross before.

    Who is stopped reads so in its folder, and ends by itself: killed, as by Tune, it leaves its workers' places taken.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    from raypaml.search.folder import is_stopped, note, outcome
    from raypaml.search.plan import own_trial

    longest = search.base.optim.epochs - search.longest_warmup - 1  # at its last epoch nobody is stopped
    if not search.early or longest < 1:
        return FIFOScheduler()
    spared = own_trial(search.base, search.spaces)  # all others are compared with it

    class Asha(AsyncHyperBandScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            ours = Trial.of(trial.config)
            if not is_stopped(search.run_folder(ours)):
                action = super().on_trial_result(tune_controller, trial, result)
                if action == self.STOP and ours != spared and not ours.repeats:
                    note(search, ours, "stopped", {"epochs": result["epoch"]})
            return self.CONTINUE

    asha = Asha("beyond", METRIC, "max", longest, round(longest / 2) or 1, REDUCTION, stop_last_trials=False)
    for trial in queue.trials:
        if trial not in queue.waiting:
            seen = SimpleNamespace(trial_id=trial.name, config=trial.settings)
            asha.on_trial_add(None, seen)
            for record in outcome(search, trial).history:
                AsyncHyperBandScheduler.on_trial_result(asha, None, seen, search.progress(record))
    return asha


def _watcher(search: Search, queue: Queue, proposals: Proposals | None, display: SearchDisplay) -> Any:
    """Tune's callback: shows what happens, and records how a trial ended."""
    from ray import tune

    from raypaml.search.folder import note, outcome, write_csv

    class Watcher(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, trial: Any, **_: Any) -> None:
            display.start(Trial.of(trial.config))

        def on_trial_result(self, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if METRIC in result:
                display.update(Trial.of(trial.config), result)

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            self._ended(Trial.of(trial.config))

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            ours = Trial.of(trial.config)
            if not outcome(search, ours).error:  # not an exception in it: its process ended
                said = str(trial.get_error()).strip().splitlines()[-1]
                note(search, ours, "error", {"error": f"its process died ({said})"})
            self._ended(ours)

        def _ended(self, ours: Trial) -> None:
            queue.done(ours)
            if proposals:
                proposals.learn(ours)
            display.end(outcome(search, ours))
            write_csv(search, [outcome(search, trial) for trial in queue.trials])

    return Watcher()


# --- The whole of it ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Search, conclude, report."""
    from raypaml import cluster
    from raypaml.reports.search_page import write_page
    from raypaml.reports.search_progress import SearchDisplay
    from raypaml.reports.search_result import conclude, table
    from raypaml.search.flags import open_queue, plan_search
    from raypaml.search.folder import outcome
    from raypaml.search.suggestion import suggest

    asked, config = parse(sys.argv[1:] if argv is None else argv)
    with SearchDisplay() as display:
        data = train.prepare(config, display.say).data
        if asked.suggest:
            print(suggest(data.splits["train"], data.splits["validation"], config).text)
            return 0
        # trials may start in another folder of another machine
        config = config.override({"storage": str(Path(config.run.storage).absolute())})
        if data.path == Path(config.data.data):  # a folder, not a name
            config = config.override({"data": str(data.path.absolute())})
        search = plan_search(asked, config, data)
        queue, proposals = open_queue(search, asked, display.say)
        display.begin(search, [outcome(search, trial) for trial in queue.trials])
        if (proposals and proposals.has_more) or queue.has_more():
            with redirect_stdout(sys.stderr), cluster.join(config.run.address, config.run.workers):
                signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which Tune takes
                execute(search, queue, proposals, display)
            if not queue.is_finished:
                display.say("stopped; the same command goes on, finished trials are kept")
                raise SystemExit(128 + signal.SIGINT)
    outcomes = [outcome(search, trial) for trial in queue.trials]
    verdict = conclude(search, outcomes, data.vocabulary)
    write_page(search, outcomes, verdict)
    print(f"{table(search, outcomes)}\n\n{verdict.text}\n\nReport: {search.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main, PROG)
