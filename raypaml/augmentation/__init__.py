"""Augmentation of training images: random numbers are drawn per sample, images are changed on the device per batch."""
