"""Losses for partial labels and the selection of what they reject."""
