"""What systems and programs put beside one's files: never an image of one's own, never the name of a class."""

from __future__ import annotations

from collections import defaultdict

PassedOver = defaultdict[str, list[str]]
"""Reason -> names of what is left out."""
_FOLDERS = (
    *("__macosx", "__pycache__", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "~snapshot", "network trash folder"),
)
"""Made by macOS, Python, Windows, Unix, and by storage of Synology (@eaDir keeps thumbnails), QNAP and NetApp."""
_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")


def is_hidden(path: str) -> bool:
    """Whether a file or folder is hidden, or lies in a folder that is: by a dot, or by a name that a system gives."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if any(part.startswith(".") or part.lower() in _FOLDERS for part in parts):
        return True
    return bool(parts) and parts[-1].lower() in _FILES
