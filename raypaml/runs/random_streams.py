"""The random numbers that layers such as dropout draw in training: one stream per rank, and its state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raypaml.runs.ranks import Ranks

CPU, CUDA = "random.cpu", "random.cuda"


def begin_stream(seed: int, *where: int) -> None:
    """Seed torch with a stream of its own for each rank, epoch and step (`where`) at which one begins."""
    torch.manual_seed(int(np.random.SeedSequence([seed, *where]).generate_state(1, np.uint64)[0]))


def random_streams(ranks: Ranks) -> dict[str, Tensor]:
    """Gather the random states of all ranks, uint8 [world size, bytes] by device; a collective."""
    gathered = {name: ranks.gather(state.numpy()) for name, state in _states(ranks.device).items()}
    return {name: torch.from_numpy(states).view(ranks.world_size, -1) for name, states in gathered.items()}


def continue_stream(kept: Mapping[str, Tensor], ranks: Ranks) -> bool:
    """Restore this rank's random states; False where they were kept by another number of ranks or on other devices."""
    states = _states(ranks.device)
    for name, state in states.items():
        if name not in kept or kept[name].shape != (ranks.world_size, len(state)):
            return False
    torch.set_rng_state(kept[CPU][ranks.rank].clone())  # torch ignores the offset of a view
    if CUDA in states:
        torch.cuda.set_rng_state(kept[CUDA][ranks.rank].clone(), ranks.device)
    return True


def _states(device: torch.device) -> dict[str, Tensor]:
    states = {CPU: torch.get_rng_state()}
    return states | {CUDA: torch.cuda.get_rng_state(device)} if device.type == "cuda" else states
