"""Readers of the usual forms of labelled images; each gives a `Source`."""
