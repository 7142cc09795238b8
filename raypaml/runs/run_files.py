"""The names of the files in the folder of a run that more than one room reads or writes."""

from __future__ import annotations

CONFIG = "config.json"
"""The settings of the run, and what it was begun with."""
METRICS_FILE = "metrics.jsonl"
"""A record of each epoch, one a line."""
SKIPPED = "skipped.jsonl"
"""The broken samples that were skipped, one a line."""
RESULT = "result.json"
"""The figures of the test; written when the run has finished."""
REPORT = "report.html"
"""The page of the run, or of a search, one file."""
