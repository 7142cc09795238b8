"""Runs a command and measures it from outside: time, memory and open files of every process that it starts.

Memory is PSS (`/proc/PID/smaps_rollup`), which divides a shared page among those that share it, so that the sum over
all processes, Ray's too, is what the command really takes. It is read twice a second, so that a shorter peak is missed.
"""

from __future__ import annotations

import ctypes
import os
import pty
import re
import resource
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.full_size.watched import Sockets, Stretch

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: this process inherits those that a command leaves without a parent."""
SAMPLE_SECONDS = 0.5
END_SECONDS = 30.0
"""For which processes that outlive their command are waited for before they are ended."""
_PATIENCE_AFTER_KILL = 1.0
COLUMNS = "200"
_PSS = re.compile(r"^(Pss\w*): +(\d+) kB", re.MULTILINE)
_HEAD, _TAIL = 400_000, 100_000
"""Bytes of a command's output that are kept."""


@dataclass
class Figures:
    """What was measured of one command."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time of all its processes that have ended; other work on the machine changes it little."""
    exit_code: int | None = None
    """None where the command was killed on purpose."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Largest PSS of a process of each kind, in MB."""
    own: dict[str, float] = field(default_factory=dict)
    """Likewise without what maps a file, such as programs and indexes, which the system can drop and read again."""
    together: float = 0.0
    """Largest sum over all processes at one time, in MB."""
    files: int = 0
    """Most open files of one process."""
    marks: dict[str, float] = field(default_factory=dict)
    """Seconds from the start until each text was first printed."""
    alone: float = 0.0
    """Longest time in seconds in which one thread of all processes worked and no other one."""
    alone_from: float = 0.0
    """Seconds from the start until it began."""
    ray_mb: float | None = None
    """Sent over TCP among Ray's processes, the driver and the workers, without gradients; None where not measured."""
    load: float = 0.0
    """Load of the machine when the command ended, which includes the command."""


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its commands leave behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def measure(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str],
    marks: dict[str, str],
    kill_when: Callable[[], bool] | None = None,
    stop_when: Callable[[], bool] | None = None,
) -> Figures:
    """Runs a command on a terminal of its own and measures it.

    Args:
        command: program and arguments.
        log: gets what the command prints.
        environment: variables besides those of this process.
        marks: names and regular expressions of texts whose time is noted.
        kill_when: asked twice a second; once it is true, all processes of the command are killed (SIGKILL).
        stop_when: asked likewise; once it is true, the command is asked to end (SIGTERM), and waited for.
    """
    figures = Figures()
    mine, theirs = pty.openpty()
    others = set(_below())
    stretch, sockets = Stretch(), Sockets()
    began, before = time.monotonic(), _cpu()
    with log.open("wb") as output:
        variables = os.environ | {"COLUMNS": COLUMNS, "TERM": "xterm"} | environment
        process = subprocess.Popen(list(command), stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=variables)
        os.close(theirs)
        reader = threading.Thread(target=_read, args=(mine, output, marks, figures.marks, began))
        reader.start()
        while process.poll() is None:
            _sample(figures, others, stretch, sockets)
            if kill_when is not None and kill_when():
                time.sleep(_PATIENCE_AFTER_KILL)
                _end(others)
                process.wait()
                figures.exit_code = None
                break
            if stop_when is not None and stop_when():
                process.terminate()
                stop_when = None
            time.sleep(SAMPLE_SECONDS)
        else:
            figures.exit_code = process.returncode
        figures.seconds = time.monotonic() - began
        _wait_for_orphans(others)
        reader.join(5)
        os.close(mine)
    figures.alone, figures.alone_from, figures.ray_mb = stretch.longest, stretch.began, sockets.megabytes
    figures.cpu_seconds, figures.load = _cpu() - before, os.getloadavg()[0]
    return figures


def _read(terminal: int, output, marks: dict[str, str], seen: dict[str, float], began: float) -> None:  # type: ignore[no-untyped-def]
    """Copies what is printed to the log, and notes when each mark appears."""
    patterns = {name: re.compile(text.encode()) for name, text in marks.items()}
    recent, kept = b"", 0
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # a terminal answers so once nobody has its other side open
            part = b""
        if not part:
            output.write(recent if kept >= _HEAD else b"")  # with the message of a failure
            return
        if kept < _HEAD:
            output.write(part)
            output.flush()
            kept += len(part)
        recent = (recent + part)[-_TAIL:]
        for name, pattern in patterns.items():
            if name not in seen and pattern.search(recent):
                seen[name] = time.monotonic() - began


def _below() -> list[int]:
    """Returns the processes below this one."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):  # noqa: PTH208  # twice a second
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children[int(fields[1])].append(int(entry))
    below, waiting = [], [os.getpid()]
    while waiting:
        more = children[waiting.pop()]
        below += more
        waiting += more
    return below


def kind_of(process: int) -> str:
    """Returns what a process is: a command of raypaml, a process of Ray by its name, or else its program."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    if words[0].startswith("ray::"):
        return words[0].partition("(")[0].split()[0]
    if "-m" in words[:3] and words[words.index("-m") + 1].startswith("raypaml"):
        return "command"
    script = next((w for w in words[1:] if w.endswith(".py")), "")
    return Path(script or words[0].split()[0] if words[0] else "ended").name


def _sample(figures: Figures, others: set[int], stretch: Stretch, sockets: Sockets) -> None:
    together, ours = 0.0, set(_below()) - others
    stretch.sample(ours)
    sockets.sample(ours, kind_of)
    for process in ours:
        kind = kind_of(process)  # first, for a process that is just ending has no command line any more
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            files = len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208
        except OSError:
            continue
        sizes = {name: int(kb) * 1024 / 1e6 for name, kb in _PSS.findall(rollup)}
        pss, mapped = sizes.get("Pss", 0.0), sizes.get("Pss_File", 0.0)
        figures.peaks[kind] = max(figures.peaks.get(kind, 0.0), pss)
        figures.own[kind] = max(figures.own.get(kind, 0.0), pss - mapped)
        figures.files = max(figures.files, files)
        together += pss
    figures.together = max(figures.together, together)


def _end(others: set[int]) -> None:
    """Kills every process that the command has started, also indirectly."""
    for process in set(_below()) - others:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait_for_orphans(others: set[int]) -> None:
    """Waits for processes that a command left behind, such as Ray's own; ends those that stay."""
    until = time.monotonic() + END_SECONDS
    while left := set(_below()) - others:
        for process in left:
            with suppress(ChildProcessError):  # another one's child, which that one waits for
                os.waitpid(process, os.WNOHANG)
        if time.monotonic() > until:
            _end(others)
        time.sleep(0.1)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bytes_below(path: Path) -> tuple[int, int]:
    """Returns the bytes and the number of the files in a folder, or of a file; 0, 0 where there is none."""
    if path.is_file():
        return path.stat().st_size, 1
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(sizes), len(sizes)
