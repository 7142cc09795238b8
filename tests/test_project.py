"""What surrounds the code: pages name what is there, the hosted checks are ours and pinned, the metadata are true."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("raypaml", "clusters", "tune", "tests", "tools", ".ci", ".github")
TEXTS = {".py", ".md", ".yaml", ".yml", ".j2", ".css", ".js", ".sh", ".toml", ".txt", ".ipynb", ""}
OUTSIDE = re.compile(r"(\.\./shared|\bshared/(cases|data|facts|hooks)|\bfacts/\w+|\bDESIGN|\bmethod\.md)\b")
"""Names of pages and folders beside which this code was written, and which a checkout does not have."""
HINTS = ("../shared", "shared/", "facts/", "DESIGN", "method.md")
"""What OUTSIDE finds holds one of these; looking for them first is faster."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def texts() -> Iterator[Path]:
    """Every text file of the checkout, this one excepted."""
    kept = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    for path in sorted([*kept, *ROOT.glob("*")]):
        if path.is_file() and path.suffix in TEXTS and path != Path(__file__):
            yield path


def pages() -> list[Path]:
    return [path for path in texts() if path.suffix == ".md"]


def items(page: Path) -> list[str]:
    """The paragraphs, list items and table rows of a page, without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.split(r"\n\n|\n(?=- |\d+\. |\|)", text)


def quoted(item: str) -> list[str]:
    return re.findall(r"`([^`]+)`", item)


def contributing() -> list[str]:
    return items(ROOT / "CONTRIBUTING.md")


# --- Pages --------------------------------------------------------------------------------------------------------


def test_every_path_in_contributing_is_there() -> None:
    paths = {name for item in contributing() for name in quoted(item) if re.fullmatch(r"[\w./-]+/[\w./-]*", name)}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()] == []


def test_every_name_in_contributing_is_in_the_files_beside_it() -> None:
    checked = 0
    for item in contributing():
        files = [ROOT / name for name in quoted(item) if "/" in name and (ROOT / name).is_file()]
        names = [name for name in quoted(item) if re.fullmatch(r"[A-Za-z_]{3,}", name)] if files else []
        together = "\n".join(path.read_text() for path in files)
        assert [name for name in names if not re.search(rf"\b{name}\b", together)] == [], item
        checked += len(names)
    assert checked > 15


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_checkout(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(items(page)))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_no_sentence_refers_to_a_file_outside_the_checkout() -> None:
    assert [
        f"{path.relative_to(ROOT)}: {reference[0]}"
        for path in texts()
        if any(hint in (text := path.read_text()) for hint in HINTS)
        for reference in OUTSIDE.finditer(text)
    ] == []


def test_each_promise_of_security_names_tests_that_exist() -> None:
    promises = [item for item in items(ROOT / ".github" / "SECURITY.md") if item.startswith("| ")][2:]
    assert len(promises) > 10
    for promise in promises:
        named = [name.split("::") for name in quoted(promise.split("|")[2])]
        assert named, promise
        lost = [test for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()]
        assert not lost, promise


# --- Hosted and local checks ----------------------------------------------------------------------------------------


def workflow(name: str = "checks.yml") -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def test_the_workflow_runs_ci_and_audits_the_pinned_versions() -> None:
    file = workflow()
    assert file["permissions"] == {"contents": "read"}
    commands = [step.get("run", "") for job in file["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in commands
    assert any(re.search(r"pip-audit .*--requirement constraints\.txt", command) for command in commands)
    assert all("permissions" not in job for job in file["jobs"].values())


def test_actions_are_pinned_by_commit_and_say_their_version() -> None:
    texts = [path.read_text() for path in (ROOT / ".github" / "workflows").iterdir()]
    used = [line for text in texts for line in text.splitlines() if "uses:" in line]
    assert len(used) >= 2
    pinned = re.compile(r"\s*- uses: [\w./-]+@[0-9a-f]{40}  # v\d+(\.\d+)+")
    assert [line for line in used if not pinned.fullmatch(line)] == []


def test_before_a_commit_runs_what_make_check_runs() -> None:
    hooks = [
        hook["entry"]
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
    ]
    rule = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    commands = [line.replace("$(BIN)", ".venv/bin").split() for line in rule.splitlines()[1:]]
    assert len(commands) == 4
    for program, *words in commands:
        verb = words[:1] if program.endswith("ruff") else words
        assert any(hook.split()[: 1 + len(verb)] == [program, *verb] for hook in hooks), (program, words)


# --- Metadata -------------------------------------------------------------------------------------------------------


def test_the_metadata_say_what_there_is_and_no_licence() -> None:
    """The owner has chosen none yet."""
    project = PROJECT["project"]
    assert (ROOT / project["readme"]).is_file()
    least = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in project["classifiers"]
    has_licence = bool(list(ROOT.glob("LICEN[CS]E*")))
    assert ("license" in project) == has_licence
    assert any(name.startswith("License") for name in project["classifiers"]) <= has_licence
    assert ("No licence has been chosen" in (ROOT / "README.md").read_text()) != has_licence


def test_type_checkers_of_other_projects_read_our_types() -> None:
    assert (ROOT / "raypaml" / "py.typed").is_file()
    left_out = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    assert not any(fnmatch("raypaml/py.typed", pattern) for pattern in left_out)
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
