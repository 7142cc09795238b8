"""Reads the files of an Open Images release as streams, and joins them to one record per image."""
