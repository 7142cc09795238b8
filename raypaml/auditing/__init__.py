"""Finds training labels that are likely missing, shows them on a page, and applies people's answers to the data set."""
