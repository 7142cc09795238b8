"""Backbones, the CAM head, BoostLU."""
