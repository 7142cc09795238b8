"""A run on disk: folder, checkpoints, model, copy in an object store, skipped samples; and the processes of a run."""
