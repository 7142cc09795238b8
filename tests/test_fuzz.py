"""The fuzzer: a hundred damaged files in `make test`, a thousand in `make nightly`; and that it sees what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import bad_ends, running
from tests.fuzz.mutations import ANY, BY_SUFFIX
from tests.fuzz.running import Case, Fuzzer
from tests.fuzz.subjects import SUBJECTS, Subject, spaces

CASES = 100


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    one = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield one
    one.close()


def test_every_damaged_file_gives_the_same_result_or_one_line(
    fuzzer: Fuzzer, record_property: Callable[[str, object], None]
) -> None:
    cases = [Case(kind, seed) for seed, kind in enumerate(islice(cycle(SUBJECTS), CASES))]
    findings = [f"{case}\n  {outcome}" for case, outcome in fuzzer.run(cases) if not outcome.is_right]
    record_property("fuzz", fuzzer.table())
    assert fuzzer.outcomes.total() == CASES
    assert {said for _, said in fuzzer.outcomes} >= {"same result", "refused in one line"}
    assert not findings, "\n".join(findings)


def test_a_tag_of_yaml_runs_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "spaces.yaml").write_text(f"- !!python/object/apply:os.system ['touch {ran}']\n")
    with pytest.raises(ValueError, match=r"spaces\.yaml: not a readable YAML file"):
        spaces(tmp_path)
    assert not ran.exists()


def _raise(folder: Path) -> object:
    return [][int(folder.name != "make")]


def _say_lines(folder: Path) -> object:
    if folder.name != "make":
        print("one", file=sys.stderr)
        raise ValueError("two")
    return 1


def _colour(folder: Path) -> object:
    if folder.name != "make":
        print("\x1b[31m", end="", file=sys.stderr)
        raise ValueError("red")
    return 1


def _take_memory(folder: Path) -> object:
    return len(bytes(2**40)) if folder.name != "make" else 1


def _answer_otherwise(folder: Path) -> object:
    return folder.name != "make"


def make(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"0123456789")


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (_raise, "traceback"),
        (_say_lines, "not one line"),
        (_colour, "control characters"),
        (_take_memory, "traceback"),
        (_answer_otherwise, "another result"),
    ],
)
def test_what_is_wrong_is_a_finding(
    use: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUBJECTS, "x", Subject("*.bin", make, (use,)))
    monkeypatch.setitem(running._SOUND, (tmp_path / "make", use.__name__), 1 if use is not _answer_otherwise else False)
    outcome = running.outcome_of(Case("x", 1), tmp_path)
    assert (outcome.said, outcome.is_right) == (said, False)
    assert "a.bin" in outcome.about


def test_a_process_that_dies_or_hangs_is_a_finding_and_the_next_case_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENCE", 1.0)
    for judge, count, said in ((bad_ends.die, 2, "ends the process with -11"), (bad_ends.wait, 1, "hangs")):
        fuzzer = Fuzzer(tmp_path, judge)
        found = [outcome.said for _, outcome in fuzzer.run([Case("spaces", seed) for seed in range(count)])]
        fuzzer.close()
        assert found == [said] * count


def test_a_seed_gives_the_same_damage_again_and_each_mutation_does_something() -> None:
    sound = {".json": b'{"a": [1, 2, {"b": 3}]}', ".csv": b"a,b\n1,2\n3,4\n", ".yaml": b"- {a: 1, b: [2]}\n"}
    own = {BY_SUFFIX[suffix]: content for suffix, content in sound.items()}
    for mutation in dict.fromkeys([*ANY, *own]):
        content = own.get(mutation, Random(1).randbytes(5000))
        made = [mutation(content, Random(seed)) for seed in range(20)]
        assert made == [mutation(content, Random(seed)) for seed in range(20)]
        assert any(one != content for one in made), mutation.__name__
