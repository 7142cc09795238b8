"""Readers of the usual formats of labelled images; each returns a `Source`."""
