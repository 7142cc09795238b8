"""Headless Chromium, which tests and `tools/screenshots.py` open pages in."""

from __future__ import annotations

import base64
import hashlib
import os
import re
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


def chromium(*arguments: str, real_time: bool = False) -> str:
    """What Chromium prints, with a profile of its own that is removed afterwards; ValueError where it fails.

    Its clock runs ahead while nothing happens, so that what waits is done before it prints; not with `real_time`.
    """
    if not CHROMIUM:
        raise ValueError(WHY_NOT)
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        clock = [] if real_time else ["--virtual-time-budget=10000"]
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", *clock, *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=os.environ | {"TZ": "UTC"}
        )
    if answer.returncode:
        raise ValueError(f"{CHROMIUM}: exit code {answer.returncode}; {answer.stderr.strip()[-500:]}")
    return answer.stdout


def allowing(page: str, script: str) -> str:
    """A page with one more script at its beginning, which its policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = re.sub(r"script-src ('none')?", f"script-src 'sha256-{digest}' ", page, count=1)
    return allowed.replace("<title>", f"<script>{script}</script><title>", 1)
