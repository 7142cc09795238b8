"""Augmentation of training images: random changes, drawn for each sample, computed on the device for a whole batch."""
