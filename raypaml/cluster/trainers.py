"""Which of Ray Train's trainers a run takes, and how its process group is made."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer

from raypaml.cluster import session


def trainer_class(private: bool) -> Any:
    """The class: TorchTrainer; on a private Ray the one that starts workers and their controller, and nothing else."""
    if not private:
        return TorchTrainer
    from raypaml.cluster.lean_trainer import LeanTrainer  # needs the Ray that is known

    return LeanTrainer


def torch_config() -> TorchConfig | None:
    """How the process group is made, where all nodes listen to this machine alone; None for Ray Train's own way."""
    if not session.is_on_loopback():
        return None
    from raypaml.cluster.loopback import LoopbackConfig  # needs the Ray that is known

    return LoopbackConfig()
