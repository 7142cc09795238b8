"""Runs the cases in a process of its own, and judges what came of each: a right outcome, or a finding."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from raypaml.cli import run_command
from tests.processes import CONTEXT

RIGHT = ("same result", "refused in one line", "as written")
"""The right outcomes: the last is that of files that people write, whose content has no digest."""
CPU_SECONDS = 20
"""Seconds of computing after which a case hangs; it takes hundredths of one."""
PATIENCE = 300.0
"""Seconds after which a case that computes less than that hangs, on a machine that is busy with other work."""
_MEMORY = 3 << 30
"""Bytes of address space that a case may take beyond those before it."""
_LONGEST = 3000
"""Characters of a line that a person still reads."""


@dataclass(frozen=True)
class Case:
    """A case, which is the same wherever it runs."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"python -m tests.fuzz --seed {self.seed} --kind {self.kind!r}"


@dataclass(frozen=True)
class Outcome:
    """What came of a case: one of RIGHT, or what is wrong; and the mutation, the file and the message."""

    said: str
    about: str = ""

    @property
    def is_right(self) -> bool:
        """Whether this may happen."""
        return self.said in RIGHT


class Fuzzer:
    """The sound examples, and the process that uses damaged copies of them.

    Args:
        folder: where they are kept.
        judge: a function of a module, which runs a case in that process; None for `outcome_of`.
    """

    def __init__(self, folder: Path, judge: Callable[[Case, Path], Outcome] | None = None):
        self._folder, self._judge = folder, judge or outcome_of
        self._ours: Connection[Any, Any] | None = None
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Number of cases by kind and outcome."""

    def run(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Outcome]]:
        """Run cases in order; a process that dies of one is replaced for the next."""
        for case in cases:
            outcome = self._outcome(case)
            self.outcomes[case.kind, outcome.said] += 1
            yield case, outcome

    def table(self) -> str:
        """The counts, a line for each kind."""
        kinds = dict.fromkeys(kind for kind, _ in self.outcomes)
        counts = {kind: {said: n for (of, said), n in self.outcomes.items() if of == kind} for kind in kinds}
        lines = [f"  {kind:18} " + ", ".join(f"{n} {said}" for said, n in of.items()) for kind, of in counts.items()]
        wrong = sum(n for (_, said), n in self.outcomes.items() if said not in RIGHT)
        return "\n".join([f"fuzz: {self.outcomes.total()} cases, {wrong} findings", *lines])

    def _outcome(self, case: Case) -> Outcome:
        if self._ours is None:
            self._start()
        assert self._ours is not None
        self._ours.send(case)
        with contextlib.suppress(EOFError, ConnectionError):
            if self._ours.poll(PATIENCE):
                found: Outcome = self._ours.recv()
                return found
        self._process.join(1)
        code = self._process.exitcode
        self.close()
        return Outcome("hangs" if code in (None, -signal.SIGXCPU) else f"ends the process with {code}")

    def _start(self) -> None:
        self._ours, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(self._folder, self._judge, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # it has imported everything

    def close(self) -> None:
        """End the process."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None
            self._process.join(1)
            self._process.kill()
            self._process.join()


def _serve(folder: Path, judge: Callable[[Case, Path], Outcome], theirs: Connection[Any, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    theirs.send(None)
    with contextlib.suppress(EOFError):
        while True:
            case = theirs.recv()
            example(case.kind, folder)  # not among the seconds of the case
            spent = resource.getrusage(resource.RUSAGE_SELF)
            seconds = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
            theirs.send(judge(case, folder))


def example(kind: str, folder: Path) -> Path:
    """The folder of the sound example of a kind, made where it is not there."""
    from tests.fuzz.subjects import SUBJECTS

    make = SUBJECTS[kind].make
    path, made = folder / make.__name__, folder / f"{make.__name__}.made"
    if not made.exists():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        make(path)
        made.touch()
    return path


def outcome_of(case: Case, folder: Path, *, verbose: bool = False) -> Outcome:
    """Damage a copy of the example, use it in every way, and give the worst outcome."""
    from tests.fuzz.subjects import SUBJECTS

    subject, sound = SUBJECTS[case.kind], example(case.kind, folder)
    rng = Random(f"{case.kind} {case.seed}")
    name, mutation, copy = _damaged(sound, subject.files, folder / f"case-{os.getpid()}", rng)
    try:
        if subject.seal:
            subject.seal(copy)
        outcomes = [_of_use(subject, number, sound, copy, verbose=verbose) for number in range(len(subject.uses))]
    finally:
        shutil.rmtree(copy)
    worst = next((one for one in outcomes if not one.is_right), outcomes[0])
    return Outcome(worst.said, f"{name}, {mutation}: {worst.about}")


def _damaged(sound: Path, pattern: str, copy: Path, rng: Random) -> tuple[str, str, Path]:
    """A copy of the example whose whole files are links to it; the name of the damaged one, and its mutation."""
    from tests.fuzz.mutations import mutated

    shutil.copytree(sound, copy, copy_function=os.link)
    path = rng.choice(sorted(path for path in copy.glob(pattern) if path.is_file()))
    mutation, content = mutated(path.read_bytes(), path.suffix, rng)
    path.unlink()
    path.write_bytes(content)
    return str(path.relative_to(copy)), mutation, copy


_SOUND: dict[tuple[Path, str], object] = {}


def _of_use(subject: Any, number: int, sound: Path, copy: Path, *, verbose: bool) -> Outcome:
    use = subject.uses[number]
    if (sound, use.__name__) not in _SOUND:
        _SOUND[sound, use.__name__] = use(sound)
    result: list[object] = []
    said, ended = _as_command(lambda: result.append(use(copy)), verbose=verbose)
    if ended:
        return Outcome(ended, f"{use.__name__}: {said}")
    if not result:
        return Outcome("refused in one line", f"{use.__name__}: {said}")
    if result[0] == _SOUND[sound, use.__name__]:
        return Outcome("same result", use.__name__)
    states = subject.written if number == 0 else None
    if (subject.is_open and not states) or (states and _reads(states, copy) == result[0]):
        return Outcome("as written", use.__name__)
    return Outcome("another result", f"{use.__name__}: {str(result[0])[:300]}")


def _reads(written: Any, copy: Path) -> object:
    try:
        return written(copy)
    except Exception as error:
        return error


def _as_command(use: Any, *, verbose: bool) -> tuple[str, str]:
    """What a command that does this says, and what is wrong with its end; both empty where it succeeds."""
    said, memory = io.StringIO(), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, memory[1]))
    try:
        with contextlib.redirect_stderr(said):
            run_command(use, "fuzz")
    except SystemExit as stop:
        text = said.getvalue()
        return text.strip(), "" if stop.code in (0, None) else _wrong_with(text, stop.code)
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/raypaml/" in frame.filename][-1:]
        lines = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (where, *ours))
        return f"{type(error).__name__}: {str(error)[:300]} at {lines}", "traceback"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)


def _wrong_with(text: str, code: object) -> str:
    if code != 2:
        return f"exit code {code}"
    if text.count("\n") != 1:
        return "not one line"
    if len(text) > _LONGEST:
        return "a line of several thousand characters"
    return "" if text[:-1].isprintable() else "control characters"
