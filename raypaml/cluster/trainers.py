"""The trainer of Ray Train that a run uses, and how its process group is set up."""

from __future__ import annotations

from ray.train.torch import TorchConfig, TorchTrainer

from raypaml.cluster.private_ray import is_known


def trainer_class(private: bool) -> type[TorchTrainer]:
    """LeanTrainer on a private Ray, else ClusterTrainer; both need the known version of Ray: TorchTrainer."""
    trainer: type[TorchTrainer] = TorchTrainer
    if private:
        from raypaml.cluster.lean_trainer import LeanTrainer

        trainer = LeanTrainer
    elif is_known():
        from raypaml.cluster.cluster_trainer import ClusterTrainer

        trainer = ClusterTrainer
    return trainer


def torch_config() -> TorchConfig | None:
    """How to set up the process group, on a node's own address alone; None for the default of a Ray that is unknown."""
    if not is_known():
        return None
    from raypaml.cluster.process_group import NodeAddressConfig  # needs the known version of Ray

    return NodeAddressConfig()
