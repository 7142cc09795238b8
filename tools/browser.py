"""Headless Chromium, which tests and `tools/screenshots.py` open pages in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
"""Its path; empty where there is none."""
WHY_NOT = "there is no Chromium on this machine (on Debian: apt-get install chromium)"
DARK = "--blink-settings=preferredColorScheme=0"
"""The flag that makes it prefer dark pages."""
FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files --no-first-run"
SECONDS = 120


def chromium(*arguments: str) -> str:
    """What Chromium prints, with a profile of its own that is removed afterwards; ValueError where it fails."""
    if not CHROMIUM:
        raise ValueError(WHY_NOT)
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--virtual-time-budget=10000", *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=os.environ | {"TZ": "UTC"}
        )
    if answer.returncode:
        raise ValueError(f"{CHROMIUM}: exit code {answer.returncode}; {answer.stderr.strip()[-500:]}")
    return answer.stdout
