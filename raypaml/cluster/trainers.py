"""The trainer of Ray Train that a run uses, and how its process group is set up."""

from __future__ import annotations

from ray.train.torch import TorchConfig, TorchTrainer

from raypaml.cluster import session


def trainer_class(private: bool) -> type[TorchTrainer]:
    """TorchTrainer or, on a private Ray, LeanTrainer, which starts only the workers and their controller."""
    trainer: type[TorchTrainer] = TorchTrainer
    if private:
        from raypaml.cluster.lean_trainer import LeanTrainer  # needs the known version of Ray

        trainer = LeanTrainer
    return trainer


def torch_config() -> TorchConfig | None:
    """How to set up the process group where all nodes are on loopback; None for Ray Train's default."""
    if not session.is_on_loopback():
        return None
    from raypaml.cluster.loopback import LoopbackConfig  # needs the known version of Ray

    return LoopbackConfig()
