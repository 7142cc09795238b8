"""One worker's loop and what it keeps: team, checkpoints, corrections, predictions."""
