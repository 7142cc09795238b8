"""Train the papers' comparison on digits over several seeds, and write one page that says which of their claims hold here.

    python tools/experiment.py                 # what `make experiment` does
    python tools/experiment.py --seeds 0,1 --epochs 18 --jobs 1
    python tools/experiment.py --quick         # two minutes, for a look at the page; its figures mean nothing
    python tools/experiment.py --page-only     # the page over what is finished

Seed by seed, and after each seed the page; finished runs are kept: the same command continues. A run is one of
`raypaml.train` in one process and one thread, without the exact sums of `--reproducible`. The rejecting schemes go on
from the assume-negative run of their alpha and seed: until the first rejection they are one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from compare_schemes import train_alone

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.data.digits import NUM_SCENES, digits_folder
from raypaml.flags import Parser, run_command
from raypaml.recipes import recipe

PROG = "python tools/experiment.py"
HIDINGS = ("single_positive", "verified")
FIRST, LATER = ("full", "an"), ("ll_r", "ll_ct", "ll_cp")
"""Schemes that need nobody's warm-up, and those that go on from that of `an`."""
ALPHAS = (1.0, 5.0)
EPOCHS = 12
SWEEP = (0.25, 0.5, 2.0, 4.0)
"""Times the delta_rel of the others, for ll_r with BoostLU on the first hiding."""
SWEEP_SEEDS = 2
QUICK = {"seeds": "0,1", "epochs": 3, "scenes": 960, "images": 60}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of an experiment share."""

    storage: Path
    epochs: int
    scenes: int

    @property
    def warmup_epochs(self) -> int:
        """A third of the epochs, as in the recipe."""
        return max(1, self.epochs // 3)

    @property
    def delta_rel(self) -> float:
        """Percent: by the last epoch it reaches what the recipe's reaches by its last."""
        ours = recipe("digits")
        reached = ours.loss.delta_rel * rejecting_epochs(ours.optim.epochs, ours.loss.warmup_epochs)
        return float(f"{reached / rejecting_epochs(self.epochs, self.warmup_epochs):.3g}")

    def config(self, hiding: str, scheme: str, alpha: float, seed: int, times: float = 1.0) -> TrainConfig:
        """One run; `times` the experiment's delta_rel. With full labels nothing is hidden: one run for all hidings."""
        hiding = HIDINGS[0] if scheme == "full" else hiding
        name = f"{hiding}-{scheme}-alpha{alpha:g}-seed{seed}" + (f"-delta{times:g}" if times != 1 else "")
        values = {"data": self._data(hiding), "scheme": scheme, "alpha": alpha, "seed": seed, "epochs": self.epochs}
        values |= {"warmup_epochs": self.warmup_epochs, "delta_rel": times * self.delta_rel, "workers": 1}
        return recipe("digits").override(
            values | {"reproducible": False, "name": name, "storage": str(self.storage / "runs"), "device": "cpu"}
        )

    def _data(self, hiding: str) -> str:
        share = self.scenes / NUM_SCENES["train"]
        counts = {split: round(share * count) for split, count in NUM_SCENES.items()}
        return str(digits_folder(hiding, num_scenes=counts))

    def stages(self, seeds: list[int]) -> Iterator[list[TrainConfig]]:
        """Runs that may be trained beside each other, stage after stage; two stages a seed, the sweep last."""
        for seed in seeds:
            for schemes in (FIRST, LATER):
                yield [
                    self.config(hiding, scheme, alpha, seed)
                    for scheme in schemes
                    for hiding in HIDINGS[: 1 if scheme == "full" else None]
                    for alpha in ALPHAS
                ]
        yield [
            self.config(HIDINGS[0], "ll_r", ALPHAS[-1], seed, times) for seed in seeds[:SWEEP_SEEDS] for times in SWEEP
        ]


def run_stage(setting: Setting, configs: list[TrainConfig], jobs: int) -> None:
    """Train what is not finished."""
    missing = [
        config for config in configs if not (Path(config.run.storage) / config.run.name / "result.json").is_file()
    ]
    if missing:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(train_alone, missing, [setting.storage / "warmups"] * len(missing)))


def parse() -> tuple[Any, Setting]:
    """The flags, and what follows from them."""
    parser = Parser(prog=PROG, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", default="0,1,2,3,4", help="[0,1,2,3,4]")
    add("--epochs", type=int, default=EPOCHS, help=f"of every run; a third is warm-up [{EPOCHS}; the recipe has 18]")
    add("--scenes", type=int, default=NUM_SCENES["train"], help="training images [12000]")
    add("--storage", type=Path, default=Path("runs/experiment"), help="[runs/experiment]")
    add("--jobs", type=int, default=2, help="runs at a time, one thread each [2]")
    add("--quick", action="store_true", help="two seeds, 3 epochs of 960 scenes: for a look at the page")
    asked = parser.parse()
    if asked.quick:
        vars(asked).update(QUICK)
    return asked, Setting(storage=asked.storage.absolute(), epochs=asked.epochs, scenes=asked.scenes)


def main() -> None:
    """Train what is missing."""
    asked, setting = parse()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    stages = list(setting.stages(seeds))
    for config in (config for stage in stages for config in stage):
        config.check()
    for stage in stages:
        run_stage(setting, stage, asked.jobs)


if __name__ == "__main__":
    run_command(main, PROG)
