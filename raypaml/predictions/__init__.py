"""Predictions as data: observed entries in Parquet parts, ours and others', read in bounded memory."""
