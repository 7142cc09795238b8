"""Likely missing positives of the training labels, and the answers of those who looked at them."""
