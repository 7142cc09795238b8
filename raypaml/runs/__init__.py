"""A run on disk: its folder, checkpoints, model, remote copy and skipped samples, and the processes that share it."""
