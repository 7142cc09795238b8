"""Reproduces published rows from a data set's released files: commands, estimated GPU hours, figures, verdict.

    python tools/papers/reproduce.py voc                                    # only prints what it would do
    python tools/papers/reproduce.py voc --files VOCdevkit/VOC2012 --run
    python tools/papers/reproduce.py openimages --files 2017_11 --images s3://open-images-dataset --run -- --workers 8

Every step is a command of raypaml and is printed before it runs. The same command continues after an interruption. The
verdict says whether the mean over seeds is within a tolerance of the published figure; there is none if the images or
the settings are not those of the paper.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raypaml.cli import Parser, run_command, say
from raypaml.config import EXECUTION_FIELDS, TrainConfig
from raypaml.files import write_json
from raypaml.recipes import recipe, resolve
from raypaml.reports.tables import markdown
from raypaml.runs.run_files import CONFIG, RESULT
from raypaml.train import parse as parse_train
from raypaml.writable import check_writable
from tools.papers.published_rows import PUBLISHED, Published, Row

PROG = "python tools/papers/reproduce.py"
ROWS = "ll_r:1,ll_r:5"


def main() -> None:
    """Prints the plan; with --run also carries it out and prints the verdicts."""
    asked = parse()
    published = PUBLISHED[asked.data]
    rows = read_rows(asked.rows, asked.data)
    print(plan(published, asked, rows), flush=True)
    if not asked.run:
        return
    check_writable(Path(asked.storage))
    for command in commands(published, asked, rows):
        say(f"$ {shlex.join(command)}")
        if code := subprocess.run(raypaml(command), check=False).returncode:
            raise ValueError(
                f"raypaml {command[0]} ended with exit code {code}; repair what it says, then give this command again"
            )
    verdicts = [judge(published, asked, row) for row in rows]
    write_json(Path(asked.storage) / f"{asked.data}.json", verdicts)
    print(as_text(verdicts))


def parse() -> Any:
    """Reads the flags."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", choices=tuple(PUBLISHED), help="data set to reproduce")
    add("--files", default="", metavar="DIR", help="files as released (openimages: the 2017_11 metadata)")
    add("--images", default="", metavar="DIR_OR_URL", help="images of the data set, for nus and openimages alone")
    add("--rows", default=ROWS, help=f"schemes and their alpha, SCHEME:ALPHA,... [{ROWS}]")
    add("--seeds", default="0,1,2", help="random seeds, with commas between [0,1,2]")
    add("--storage", default="runs/papers", metavar="DIR", help="folder of the data sets and runs [runs/papers]")
    add("--tflops", type=float, default=100.0, metavar="X", help="TFLOP/s that a GPU sustains, to estimate hours [100]")
    add("--run", action="store_true", help="run the commands and compare the figures [only print the commands]")
    parser.usage = f"{PROG} DATA [FLAGS] [-- FLAGS_OF_TRAIN]"
    argv, more = sys.argv[1:], []
    if "--" in argv:  # argparse gives a list of positional arguments nothing that comes after flags
        cut = argv.index("--")
        argv, more = argv[:cut], argv[cut + 1 :]
    asked = parser.parse(argv)
    asked.more = more
    _check(asked)
    return asked


_OWN = ("--data", "--scheme", "--alpha", "--seed", "--storage", "--name")


def _check(asked: Any) -> None:
    """Raises ValueError for flags that cannot be carried out."""
    numbers = asked.seeds.split(",")
    if not all(part.isdigit() for part in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={asked.seeds!r}: give whole numbers, each once, such as 0,1,2")
    if not 0 < asked.tflops < float("inf"):
        raise ValueError(f"tflops={asked.tflops:g}: must be above 0")
    needs = [name for name in ("files", "images") if "{" + name + "}" in PUBLISHED[asked.data].shard]
    if asked.images and "images" not in needs:
        raise ValueError(f"images: the images of {asked.data} are among its files; leave --images out")
    if asked.run and (lacking := [f"--{name}" for name in needs if not getattr(asked, name)]):
        raise ValueError(f"run: give {' and '.join(lacking)}")
    if taken := [flag for flag in asked.more if flag.split("=")[0] in _OWN]:
        raise ValueError(f"{taken[0]}: follows from DATA, --rows, --seeds and --storage; leave it out")
    parse_train([PUBLISHED[asked.data].recipe, *asked.more])


def read_rows(text: str, data: str) -> list[Row]:
    """Reads the rows that were asked for; raises ValueError for one that is not published."""
    rows = []
    for part in text.split(","):
        scheme, _, alpha = part.partition(":")
        known = PUBLISHED[data].rows
        row = (scheme, float(alpha)) if alpha.replace(".", "", 1).isdigit() else (scheme, float("nan"))
        if row not in known:
            names = ", ".join(f"{name}:{value:g}" for name, value in known)
            raise ValueError(f"rows: {part!r}: is not published for {data}; known: {names}")
        rows.append(row)
    return rows


# --- The plan ---------------------------------------------------------------------------------------------------------


def plan(published: Published, asked: Any, rows: list[Row]) -> str:
    """Returns the plan as text: the commands, the published figures with their tolerance, and the estimated time."""
    hours = gpu_hours(published, asked.tflops)
    rate = recipe(published.recipe).optim.epochs * published.train / hours / 3600
    runs = len(rows) * len(seeds(asked))
    figures = ", ".join(f"{scheme} at alpha {alpha:g}: {published.rows[scheme, alpha]}" for scheme, alpha in rows)
    return "\n".join(
        [
            *(f"raypaml {shlex.join(command)}" for command in commands(published, asked, rows)),
            "",
            f"Published test mAP: {figures}.",
            f"The mean over seeds may differ by {published.tolerance} points: {published.why}.",
            *([f"Note: {published.remark}."] if published.remark else []),
            f"Expected: at least {hours:.2g} GPU hours per run, {hours * runs:.2g} for all {runs}, at {asked.tflops:g} "
            f"TFLOP/s sustained (counted operations). The CPUs must decode {rate:,.0f} images/s for that.",
        ]
    )


def commands(published: Published, asked: Any, rows: list[Row]) -> Iterator[list[str]]:
    """Yields the arguments of each call of `raypaml`: sharding, then every run."""
    out = str(Path(asked.storage) / asked.data)
    files, images = asked.files or "FILES", asked.images or "IMAGES"
    yield ["shard", *(part.format(files=files, images=images, out=out) for part in published.shard.split())]
    for scheme, alpha in rows:
        for seed in seeds(asked):
            flags = {"data": out, "scheme": scheme, "alpha": f"{alpha:g}", "seed": str(seed), "storage": asked.storage}
            flags["name"] = run_name(asked, (scheme, alpha), seed)
            given = [word for name, value in flags.items() for word in (f"--{name}", value)]
            yield ["train", published.recipe, *given, *asked.more]


def raypaml(command: list[str]) -> list[str]:
    """Returns the words that start a command of raypaml with this Python."""
    return [sys.executable, "-m", f"raypaml.{command[0]}", *command[1:]]


def seeds(asked: Any) -> list[int]:
    """Returns the seeds of --seeds."""
    return [int(seed) for seed in asked.seeds.split(",")]


def run_name(asked: Any, row: Row, seed: int) -> str:
    """Returns the name of the run of a row and a seed."""
    return f"{asked.data}-{row[0]}-alpha{row[1]:g}-seed{seed}"


def gpu_hours(published: Published, tflops: float) -> float:
    """Estimates the hours of a run on a GPU that sustains this rate: training, validation after each epoch, test."""
    import torch

    from raypaml.training.estimate import measure

    config = recipe(published.recipe)
    size = (published.pixels, published.pixels)
    shape = measure(config.model.backbone, published.classes, *size, torch.float32)
    forward = shape.flops + shape.head_flops
    epoch = published.train * shape.training_flops() + published.validation * forward
    return (config.optim.epochs * epoch + published.test * forward) / (tflops * 1e12) / 3600


# --- The verdict ------------------------------------------------------------------------------------------------------


def judge(published: Published, asked: Any, row: Row) -> dict[str, Any]:
    """Returns the figures of one row and their verdict."""
    runs = [Path(asked.storage) / run_name(asked, row, seed) for seed in seeds(asked)]
    scores = [100 * json.loads((run / RESULT).read_text())["mean_ap"] for run in runs]
    record = json.loads((runs[0] / CONFIG).read_text())
    mean, target = statistics.fmean(scores), published.rows[row]
    return {
        "scheme": row[0],
        "alpha": row[1],
        "mean_ap": mean,
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "seeds": scores,
        "published": target,
        "tolerance": published.tolerance,
        "verdict": verdict(mean - target, published.tolerance, differences(published, record)),
    }


def verdict(distance: float, tolerance: float, others: list[str]) -> str:
    """Returns the verdict in words.

    Args:
        distance: points of mAP by which the mean over seeds is above the published figure.
        tolerance: largest distance that counts as reproduced.
        others: differences from the published protocol; if there are any, there is no verdict.
    """
    if others:
        return f"no verdict: {'; '.join(others)}"
    if abs(distance) <= tolerance:
        return f"reproduced ({distance:+.2f})"
    return f"not reproduced: {abs(distance):.2f} {'below' if distance < 0 else 'above'}"


_MAY_DIFFER = (
    *("data", "alpha", "seed"),  # given by the row
    *("pseudo_labels", "pseudo_labels_sha256"),  # the method needs a file of one's own
    *("lanes", "shuffle_window", "reproducible", "precision", "evaluation_precision", "matmul_precision"),
    *("cudnn_benchmark", "threads", "compile", "feature_cache", "test_features"),
)
"""Settings that may differ from the published protocol, in addition to `EXECUTION_FIELDS`."""


def differences(published: Published, record: dict[str, Any]) -> list[str]:
    """Lists the differences of a run from the published protocol, in images, classes and settings of the recipe."""
    data, differing = record["data"], list[str]()
    if data["num_classes"] != published.classes:
        differing.append(f"{data['num_classes']} classes instead of {published.classes}")
    for split, expected in (("train", published.train), ("test", published.test)):
        images = data["samples"].get(split, 0)
        if not expected * (1 - published.missing) <= images <= expected * (1 + published.missing):
            differing.append(f"{images:,} {split} images instead of {expected:,}")
    asked = TrainConfig.from_dict(record["config"])
    usual = resolve(recipe(published.recipe), {"scheme": asked.loss.scheme}).flat()
    for name, value in asked.flat().items():
        if name not in (*_MAY_DIFFER, *EXECUTION_FIELDS) and value != usual[name]:
            differing.append(f"{name} {value!r} instead of {usual[name]!r}")
    return differing


def as_text(verdicts: list[dict[str, Any]]) -> str:
    """Returns the verdicts as a Markdown table."""
    rows = []
    for row in verdicts:
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2f}"
        cells = [row["scheme"], f"{row['alpha']:g}", f"{row['mean_ap']:.2f}{spread}", f"{row['published']:.2f}"]
        rows.append([*cells, f"{row['tolerance']:g}", row["verdict"]])
    return markdown(["scheme", "alpha", "test mAP", "published", "tolerance", "verdict"], rows, left=1)


if __name__ == "__main__":
    run_command(main, PROG)
