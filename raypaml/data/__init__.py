"""From images and labels to batches."""
