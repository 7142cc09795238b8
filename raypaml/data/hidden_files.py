"""Files and folders that operating systems and programs create, which are neither images nor names of classes."""

from __future__ import annotations

from collections import defaultdict

PassedOver = defaultdict[str, list[str]]
"""Names of files that are left out, by the reason."""
_FOLDERS = (
    *("__macosx", "__pycache__", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "~snapshot", "network trash folder"),
)
"""Created by macOS, Python, Windows, Unix, and by storage of Synology (@eaDir has thumbnails), QNAP and NetApp."""
_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")


def is_hidden(path: str) -> bool:
    """Whether a file or folder, or a folder around it, has a name that begins with a dot or that a system gives."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if any(part.startswith(".") or part.lower() in _FOLDERS for part in parts):
        return True
    return bool(parts) and parts[-1].lower() in _FILES
