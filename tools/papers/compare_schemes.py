"""Trains the same recipe with several schemes and seeds, and prints the table of tools/papers/README.md.

    python tools/papers/compare_schemes.py                     # took 47 minutes on two busy cores
    python tools/papers/compare_schemes.py --rows an:1,ll_r:5 --seeds 0 --epochs 5
    python tools/papers/compare_schemes.py --recipe voc2012_single --data DIR --rows full:1,an:1,ll_r:1,ll_r:5 -- \\
        --backbone timm:tf_efficientnet_lite0 --weights FILE --freeze-backbone 10 --no-flip     # flags of raypaml.train

Two runs are trained at a time, with one process and one thread each. If the recipe is reproducible, their weights equal
those of `raypaml train` with any number of workers. The same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.cli import Parser, run_command, say
from raypaml.config import TrainConfig
from raypaml.counting import LINE_SECONDS, Count
from raypaml.labels import GROUP_NAMES
from raypaml.losses.schemes import passed_over, scheme_of, settings_it_has
from raypaml.recipes import otherwise_than_own
from raypaml.reports.tables import markdown, seed_interval
from raypaml.runs.run_files import METRICS_FILE, RESULT
from raypaml.train import parse

if TYPE_CHECKING:  # with torch, which --help does without
    from raypaml.training.job import Job

PROG = "python tools/papers/compare_schemes.py"
ROWS = "full:1,full:5,an:1,an:5,ll_r:1,ll_r:5"


def train_alone(config: TrainConfig, warmups: Path | None = None) -> dict[str, Any]:
    """Trains one run in this process; returns its result.json.

    Args:
        config: the configuration of the run.
        warmups: folder of warm-up checkpoints. A run of scheme `an` puts its own there, and runs of other schemes with
            the same settings start from it. None: every run does its own warm-up.
    """
    import torch

    from raypaml.runs.sole_writer import sole_writer
    from raypaml.search.warmup import warmup_key
    from raypaml.training.job import prepare_job

    torch.set_num_threads(1)
    job = prepare_job(config, lambda _: None)
    config = job.config
    finished = job.folder / RESULT
    if finished.is_file():
        return dict(json.loads(finished.read_text()))
    shared = warmups / warmup_key(config) if warmups else None
    with sole_writer(job.folder, PROG, print):
        return _trained(job, shared)


def _trained(job: Job, shared: Path | None) -> dict[str, Any]:
    """Train a run, which starts from a warm-up in `shared` or leaves its own there; returns its result.json."""
    import torch

    from raypaml.run_report.conclude import conclude_run
    from raypaml.runs.events import EpochReport, Event
    from raypaml.runs.run_folder import claim
    from raypaml.search.warmup import keep, start_from
    from raypaml.training.loop import train

    config = job.config
    claim(job.folder, config, job.data)
    if shared:
        start_from(shared, job.folder, config.loss.warmup_epochs)

    def report(event: Event) -> bool:
        epoch = event.record["epoch"] + 1 if isinstance(event, EpochReport) else 0
        if shared and config.loss.scheme == "an" and epoch == config.loss.warmup_epochs:
            keep(job.folder, shared, epoch)
        return False

    train(config, job.data.address, job.folder, torch.device("cpu"), report, commit_first=shared is not None)
    result = conclude_run(job)
    print(f"{config.run.name}: {100 * result['mean_ap']:.2f}", flush=True)
    return dict(result)


def arguments() -> Parser:
    """Returns the parser of this command's flags."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=ROWS, help=f"schemes and their alpha, SCHEME:ALPHA,... [{ROWS}]")
    parser.add_argument("--seeds", default="0,1,2", help="random seeds, with commas between [0,1,2]")
    parser.add_argument("--recipe", default="digits", help="recipe of every run [digits]")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of every run [the recipe's]")
    parser.add_argument("--data", default="", help="data set of every run [the recipe's]")
    parser.add_argument("--storage", default="runs/compare", help="folder of the runs [runs/compare]")
    parser.add_argument("--jobs", type=int, default=2, help="runs that are trained at the same time [2]")
    about = "also choose an alpha for each run on the validation split, and show the test mAP at it"
    parser.add_argument("--choose-alpha", action="store_true", help=about)
    parser.add_argument("more", nargs="*", metavar="-- FLAGS", help="flags of python -m raypaml.train, for every run")
    return parser


def main() -> None:
    """Trains the runs that are missing and prints the table."""
    asked = arguments().parse()
    rows = [(scheme, float(alpha)) for scheme, _, alpha in (row.partition(":") for row in asked.rows.split(","))]
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    for said in passed_over(list(dict.fromkeys(scheme for scheme, _ in rows)), *given_to_all(asked.more)):
        say(said)
    configs = [run_config(asked, scheme, alpha, seed) for seed in seeds for scheme, alpha in rows]
    for config in configs:
        config.check()
        for said in otherwise_than_own(config):
            say(f"{config.run.name}: {said}")
    first = [run_config(asked, "ignore", c.model.alpha, c.run.seed) for c in configs if c.loss.priors]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        all_runs = first + configs
        epochs = sum(config.optim.epochs for config in all_runs)
        count = Count("training", epochs, say, unit="epochs", done=epochs_done(all_runs))
        for some in (first, configs):
            running = [pool.submit(train_alone, config) for config in some]
            while wait(running, LINE_SECONDS, FIRST_EXCEPTION).not_done and not any(map(_failed, running)):
                count.reach(epochs_done(all_runs))
            results = [run.result() for run in running]
        count.reach(epochs_done(all_runs))
        count.show()
        if asked.choose_alpha:
            results = list(pool.map(with_chosen_alpha, configs))
    print(table(rows, [results[n :: len(rows)] for n in range(len(rows))]))


def with_chosen_alpha(config: TrainConfig) -> dict[str, Any]:
    """Returns the result.json of a finished run, with the figures at the alpha that is best on validation."""
    from raypaml.evaluate import main as evaluate

    folder = Path(config.run.storage) / config.run.name
    result = dict(json.loads((folder / RESULT).read_text()))
    if "chosen_alpha" not in result:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate([str(folder), "--choose-alpha"])
        result = dict(json.loads((folder / RESULT).read_text()))
    return result


def epochs_done(configs: list[TrainConfig]) -> int:
    """Returns the number of finished epochs of these runs, also while other processes train them."""
    files = (Path(config.run.storage) / config.run.name / METRICS_FILE for config in configs)
    return sum(len(file.read_text().splitlines()) for file in files if file.is_file())


def _failed(run: Future[dict[str, Any]]) -> bool:
    return run.done() and run.exception() is not None


def given_to_all(flags: list[str]) -> tuple[str, str]:
    """Returns the values of --pseudo-labels and --scheme-settings among flags; not every scheme uses them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--pseudo-labels", default="")
    parser.add_argument("--scheme-settings", default="")
    known, _ = parser.parse_known_args(flags)
    return known.pseudo_labels, known.scheme_settings


def run_config(asked: Any, scheme: str, alpha: float, seed: int) -> TrainConfig:
    """Returns the configuration that `raypaml train` would use; a run that has begun keeps its own.

    The flags for every run apply, except that a scheme without use for pseudo labels or settings does not get them.
    """
    file, settings = given_to_all(asked.more)
    flags = [asked.recipe, *asked.more, "--scheme", scheme, "--alpha", f"{alpha}", "--seed", f"{seed}"]
    flags += ["--workers", "1", "--storage", asked.storage]
    flags += ["--scheme-settings", settings_it_has(scheme, settings)] if settings else []
    if file and not scheme_of(scheme).takes_pseudo_labels:
        flags += ["--pseudo-labels", "", "--pseudo-labels-sha256", ""]
    flags += ["--epochs", f"{asked.epochs}"] if asked.epochs else []
    flags += ["--data", asked.data] if asked.data else []
    new, _ = parse(flags)
    name = new.data.data.strip("/").replace(":", "-").replace("/", "-")
    rest = f"alpha{alpha:g}-seed{seed}-epochs{new.optim.epochs}"
    if scheme == "csl":
        flags += ["--priors", str(Path(asked.storage) / f"{name}-ignore-{rest}")]
    return parse([*flags, "--name", f"{name}-{scheme}-{rest}"])[0]


def table(rows: list[tuple[str, float]], results: list[list[dict[str, Any]]]) -> str:
    """Returns a Markdown table: the mean of each class group, the mean mAP with its 95 % interval, and every seed's.

    If an alpha was chosen for every run, another column has the mean mAP at the chosen ones, with its interval.
    """
    chosen = all("chosen_alpha" in run for runs in results for run in runs)
    head = ["scheme", "alpha", *GROUP_NAMES, "mAP", *(["at the chosen alpha"] if chosen else []), "by seed"]
    lines = []
    for (scheme, alpha), runs in zip(rows, results, strict=True):
        groups = [f"{100 * statistics.fmean(run['groups'][name] for run in runs):.1f}" for name in GROUP_NAMES]
        scores = [100 * run["mean_ap"] for run in runs]
        cells = [scheme, f"{alpha:g}", *groups, with_interval(scores)]
        if chosen:
            cells.append(with_interval([100 * run["chosen_alpha"]["mean_ap"] for run in runs]))
        lines.append([*cells, ", ".join(f"{score:.1f}" for score in scores)])
    return markdown(head, lines, left=1)


def with_interval(scores: list[float]) -> str:
    """Returns the mean over seeds, followed by ± half its 95 % interval (Student's t) if there are several."""
    if len(scores) < 2:
        return f"{scores[0]:.1f}"
    mean, _, high = seed_interval(scores)
    return f"{mean:.1f} ± {high - mean:.1f}"


if __name__ == "__main__":
    run_command(main, PROG)
