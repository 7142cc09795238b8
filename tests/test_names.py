"""The rule for names that become folders or files, and the names of outputs for texts of unknown origin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raypaml.names import MOST_BYTES, check_new_folders, markdown_line, name_fault, output_name

REFUSED = {
    "": "must not be empty",
    ".": "one folder or file, not a path",
    "..": "one folder or file, not a path",
    "../../escape": "one folder or file, not a path",
    "/etc/x": "one folder or file, not a path",
    "a\\b": "one folder or file, not a path",
    "a\nb": "U\\+000A; leave it out",
    "a\x1b[31mb": r"U\+001B; leave it out",
    "a\0b": r"U\+0000; leave it out",
    "a\u202eb": r"U\+202E RIGHT-TO-LEFT OVERRIDE",
    "a\u200bb": r"U\+200B ZERO WIDTH SPACE",
    "a\ud800b": r"U\+D800",
    300 * "a": "has 300 bytes; give at most 240",
    100 * "\u4e2d": "has 300 bytes",
    ".hidden": "must not begin with a dot",
    "-rf": "a hyphen",
    " a": "a space",
    "a ": "nor end with",
    "a.": "nor end with",
    "a?b": "question mark",
    "CON": "device on Windows",
    "nul.txt": "device on Windows",
    "\uff0e\uff0e": "Unicode's form NFKC",
    "cafe\u0301": r"give caf\\xe9",
    "\u0440un": "mixes Latin and Cyrillic",
}


@pytest.mark.parametrize(("name", "why"), REFUSED.items(), ids=ascii)
def test_a_name_that_is_no_plain_folder_is_refused_in_one_line(name: str, why: str) -> None:
    fault = name_fault(name)
    assert re.search(why, fault)
    assert fault.isprintable()
    assert len(fault) < 200


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "run 1",
        "alpha=5,delta_rel=0.25",
        "backbone=timm:resnet18",
        "Größe",
        "中文",
        "прогон",
        "α5",
        "v1.2",
        "con1",
        240 * "a",
    ],
)
def test_usual_names_are_names(name: str) -> None:
    assert name_fault(name) == ""


def test_the_name_of_an_output_is_readable_stays_in_its_folder_and_is_of_one_text_alone() -> None:
    assert output_name("cat.jpg-c0", ".png") == "cat.jpg-c0.png"
    texts = [
        "../x",
        "/x",
        "x/",
        "x",
        "",
        ".x",
        "..",
        "a/b",
        "a_b",
        "a\\b",
        "x\n",
        300 * "x",
        301 * "x",
        "CON",
        "\ud800",
        "-x",
    ]
    names = [output_name(text, ".png") for text in texts]
    assert [name_fault(name) for name in names] == len(texts) * [""]
    assert len(set(names)) == len(texts)
    assert (names[0][:2], names[7][:4], names[8]) == ("x-", "a_b-", "a_b.png")
    assert max(len(name.encode()) for name in names) <= MOST_BYTES


def test_a_name_in_markdown_is_one_line_that_shows_it() -> None:
    assert markdown_line("<b>*a*\n[x](y)`\x1b") == r"\<b>\*a\* \[x\](y)\`\\x1b"


def test_folders_that_are_made_have_fit_names_and_those_that_exist_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "-odd "
    odd.mkdir()
    for fine in (".", "..", "../new", "./a/b", ".cache/x", str(odd), str(odd / "new"), str(tmp_path)):
        check_new_folders("out", fine)
    for bad, why in {
        "": "must not be empty",
        " ": "must not be empty",
        "s3://bucket/x": "an address",
        "file:///x": "an address",
        "a\0b": "U+0000",
        "a\nb/c": "U+000A",
        "new/-x": "hyphen",
        f"{300 * 'a'}/b": "300 bytes",
        str(odd / "CON"): "device on Windows",
    }.items():
        with pytest.raises(ValueError) as refused:
            check_new_folders("out", bad)
        assert why in str(refused.value)
        assert str(refused.value).startswith("out=")
