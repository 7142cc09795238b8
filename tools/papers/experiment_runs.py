"""The runs of `tools/papers/experiment.py`, their order, and the measurements of finished ones."""

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
"""Schemes that do their own warm-up, and those that start from the warm-up of `an`."""
ALPHAS = (1.0, 5.0)
CURVE = tuple(float(alpha) for alpha in range(1, 11))
"""The values of alpha at which every run is evaluated."""
EPOCHS = 12
SWEEP = (0.25, 0.5, 2.0, 4.0)
"""The sweep trains `ll_r` with BoostLU at these multiples of the delta_rel of the other runs, for HIDINGS[0] alone."""
SWEEP_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings that all runs of an experiment share."""

    storage: Path
    epochs: int
    scenes: int

    @property
    def warmup_epochs(self) -> int:
        """The number of warm-up epochs: a third of all, as in the recipe."""
        return max(1, self.epochs // 3)

    def delta_rel(self, scheme: str, times: float = 1.0) -> float:
        """Returns `times` the recipe's delta_rel in percent, multiplied to make up for the fewer epochs that reject.

        With `times` 1, the last epoch of LL-R and LL-Ct, whose rates grow, rejects as much as the recipe's last. LL-Cp
        has the same rate in all epochs, and so rejects more in each of them than with the recipe.
        """
        usual = resolve(recipe("digits"), {"scheme": scheme})
        reached = usual.loss.delta_rel * rejecting_epochs(usual.optim.epochs, usual.loss.warmup_epochs)
        return float(f"{times * reached / rejecting_epochs(self.epochs, self.warmup_epochs):.3g}")

    def config(self, hiding: str, scheme: str, alpha: float, seed: int, times: float = 1.0) -> TrainConfig:
        """Returns the configuration of one run.

        With full labels nothing is hidden, so all ways of hiding share a run.

        Args:
            hiding: one of HIDINGS, the way in which labels are hidden.
            scheme: its loss.
            alpha: BoostLU's factor in training.
            seed: its random seed.
            times: factor on the experiment's delta_rel, for the sweep.
        """
        hiding = HIDINGS[0] if scheme == "full" else hiding
        name = f"{hiding}-{scheme}-alpha{alpha:g}-seed{seed}" + (f"-delta{times:g}" if times != 1 else "")
        values = {"data": self.data(hiding), "scheme": scheme, "alpha": alpha, "seed": seed, "epochs": self.epochs}
        values |= {"warmup_epochs": self.warmup_epochs, "workers": 1, "delta_rel": self.delta_rel(scheme, times)}
        values |= {"reproducible": False, "name": name, "storage": str(self.storage / "runs"), "device": "cpu"}
        return resolve(recipe("digits"), values)

    def data(self, hiding: str) -> str:
        """Returns the folder of the data set, which is written on first use."""
        share = self.scenes / NUM_SCENES["train"]
        counts = {split: round(share * count) for split, count in NUM_SCENES.items()}
        return str(digits_folder(hiding, num_scenes=counts))

    def reference(self, seed: int, seeds: Sequence[int]) -> TrainConfig:
        """Returns the run with full labels that the maps of this seed's runs are compared with.

        It has the next seed, so that no run shares its initial weights; if there is only one seed, it has that seed.
        """
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        return self.config(HIDINGS[0], "full", ALPHAS[0], following)

    def stages(self, seeds: list[int]) -> Iterator[list[TrainConfig]]:
        """Yields lists of runs that may be trained at the same time: two for each seed, then the sweep."""
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
    """Returns the folder of a run."""
    return Path(config.run.storage) / config.run.name


def is_finished(config: TrainConfig) -> bool:
    """Returns whether the run has finished."""
    return (folder_of(config) / RESULT).is_file()


# --- Measuring finished runs -----------------------------------------------------------------------------------------


def measure(config: TrainConfig, reference: TrainConfig, images: int) -> None:
    """Writes into a finished run's folder its AP by alpha, and the comparison of its maps with the reference's.

    Args:
        config: the finished run.
        reference: the run with full labels to compare with.
        images: number of test images whose maps are compared.
    """
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
    """Returns the path of the file with the comparison of the maps of two runs."""
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
    """Computes the maps of two runs on evenly spaced test images of the first run's data; returns them and the data."""
    import torch

    from raypaml.data.data_folder import open_folder
    from raypaml.explanations.comparing import evenly_spaced, explain_steps

    data = open_folder(config.data.data)
    steps = evenly_spaced(len(data.splits["test"]), images, config.data.global_batch_size)
    return explain_steps(model_of(config), model_of(reference), data, "test", steps, torch.device("cpu")), data


def model_of(config: TrainConfig) -> Any:
    """Returns the model of a finished run that its test mAP belongs to."""
    from raypaml.runs.models import tested_model

    return tested_model(folder_of(config), config.model, len(CLASS_IDS))
