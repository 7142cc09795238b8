"""The runs of `tools/papers/experiment.py`: which, in what order, and what is measured of each when it is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypaml.config import TrainConfig, rejecting_epochs
from raypaml.data.digits import CLASS_IDS, NUM_SCENES, digits_folder
from raypaml.recipes import recipe, resolve
from raypaml.runs.run_files import RESULT

if TYPE_CHECKING:
    from raypaml.explanations.pairs import Pairs

HIDINGS = ("single_positive", "verified")
FIRST, LATER = ("full", "an"), ("ll_r", "ll_ct", "ll_cp")
"""Schemes that need nobody's warm-up, and those that go on from that of `an`."""
ALPHAS = (1.0, 5.0)
CURVE = tuple(float(alpha) for alpha in range(1, 11))
"""Values of alpha at which every run is evaluated."""
EPOCHS = 12
SWEEP = (0.25, 0.5, 2.0, 4.0)
"""Multiples of the other runs' delta_rel that ll_r with BoostLU is trained at, for the first way of hiding."""
SWEEP_SEEDS = 2


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

    def delta_rel(self, scheme: str, times: float = 1.0) -> float:
        """Percent: by the last epoch it reaches `times` what the recipe's for this scheme reaches by its last."""
        ours = resolve(recipe("digits"), {"scheme": scheme})
        reached = ours.loss.delta_rel * rejecting_epochs(ours.optim.epochs, ours.loss.warmup_epochs)
        return float(f"{times * reached / rejecting_epochs(self.epochs, self.warmup_epochs):.3g}")

    def config(self, hiding: str, scheme: str, alpha: float, seed: int, times: float = 1.0) -> TrainConfig:
        """One run; `times` the experiment's delta_rel. With full labels nothing is hidden: one run for all hidings."""
        hiding = HIDINGS[0] if scheme == "full" else hiding
        name = f"{hiding}-{scheme}-alpha{alpha:g}-seed{seed}" + (f"-delta{times:g}" if times != 1 else "")
        values = {"data": self.data(hiding), "scheme": scheme, "alpha": alpha, "seed": seed, "epochs": self.epochs}
        values |= {"warmup_epochs": self.warmup_epochs, "workers": 1, "delta_rel": self.delta_rel(scheme, times)}
        values |= {"reproducible": False, "name": name, "storage": str(self.storage / "runs"), "device": "cpu"}
        return resolve(recipe("digits"), values)

    def data(self, hiding: str) -> str:
        """The data set's folder, written on first use."""
        share = self.scenes / NUM_SCENES["train"]
        counts = {split: round(share * count) for split, count in NUM_SCENES.items()}
        return str(digits_folder(hiding, num_scenes=counts))

    def reference(self, seed: int, seeds: Sequence[int]) -> TrainConfig:
        """The run of full labels that maps of this seed are compared with: of the next seed, so that even a run of
        full labels shares no initial weights with it; its own where there is one seed only.
        """
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        return self.config(HIDINGS[0], "full", ALPHAS[0], following)

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


def folder_of(config: TrainConfig) -> Path:
    """The folder of a run."""
    return Path(config.run.storage) / config.run.name


def is_finished(config: TrainConfig) -> bool:
    """Whether the run need not be trained."""
    return (folder_of(config) / RESULT).is_file()


# --- What is measured of a finished run -------------------------------------------------------------------------------


def measure(config: TrainConfig, reference: TrainConfig, images: int) -> None:
    """Write AP by alpha, and the comparison of maps with those of a run of full labels, beside a finished run."""
    import torch

    from raypaml.explanations.explanation_figures import map_summary
    from raypaml.files import write_json

    torch.set_num_threads(1)
    if not (folder_of(config) / "ap.json").is_file():
        write_json(folder_of(config) / "ap.json", _ap_by_alpha(config))
    target = comparison(config, reference)
    if config != reference and is_finished(reference) and not target.is_file():
        pairs, data = compare(config, reference, images)
        write_json(target, map_summary(pairs, data.vocabulary.class_group))


def comparison(config: TrainConfig, reference: TrainConfig) -> Path:
    """The path of the figures that compare the maps of two runs."""
    return folder_of(config) / f"maps-against-{reference.run.name}.json"


def _ap_by_alpha(config: TrainConfig) -> dict[str, list[float | None]]:
    from raypaml.data.data_folder import open_folder
    from raypaml.evaluation.measures import EvaluationOptions, evaluate_set
    from raypaml.evaluation.parts import open_set
    from raypaml.files import number_or_null

    predictions = open_set(folder_of(config) / "predictions" / "test")
    options = EvaluationOptions(alphas=CURVE)
    curve = evaluate_set(predictions, open_folder(config.data.data).vocabulary, options).curve
    return {f"{alpha:g}": [number_or_null(value) for value in ap.tolist()] for alpha, ap in curve.items()}


def compare(config: TrainConfig, reference: TrainConfig, images: int) -> tuple[Pairs, Any]:
    """The maps of two runs on evenly spaced test images of the first's data; and that data."""
    import torch

    from raypaml.data.data_folder import open_folder
    from raypaml.explanations.comparing import evenly_spaced, explain_steps

    data = open_folder(config.data.data)
    steps = evenly_spaced(len(data.splits["test"]), images, config.data.global_batch_size)
    return explain_steps(model_of(config), model_of(reference), data, "test", steps, torch.device("cpu")), data


def model_of(config: TrainConfig) -> Any:
    """The tested model of a finished run."""
    from raypaml.runs.models import tested_model

    return tested_model(folder_of(config), config.model, len(CLASS_IDS))
