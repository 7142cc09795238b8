"""Fills the templates of pages, each of which lies beside the code that fills it; a page needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from raypaml.cli import visible
from raypaml.counting import epoch_number
from raypaml.files import write_whole
from raypaml.reports.tables import figure, percent

SHARED = Path(__file__).parent
"""Folder of what templates share: the frame of a page, its style, and macros."""
_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of a sign, which a file name that is not UTF-8 may hold, and a page cannot."""


def fill_template(template: Path, **values: object) -> str:
    """The text of a template with its values; a value that the template names and does not get is an error.

    Args:
        template: Jinja file. An HTML template (`.html.j2`) escapes values, extends `page.html.j2` and may import
            `macros.html.j2`; any template has the filter `epoch_number` and the functions `figure` and `percent` of
            `reports.tables`.
        values: the values, by the names that the template uses.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, SHARED]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        keep_trailing_newline=not template.name.endswith(".html.j2"),
    )
    environment.filters.update(epoch_number=epoch_number, script_source=script_source)
    environment.globals.update(figure=figure, percent=percent)
    environment.policies.update({"json.dumps_function": page_json, "json.dumps_kwargs": {}})
    return environment.get_template(template.name).render(values)


def shown(value: object) -> object:
    """A value as a template shows it: of a text, what would turn or hide the text around it becomes visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page_json(value: object) -> str:
    """JSON for the data of a page, in UTF-8 rather than as escapes: 4 bytes for an emoji, which has 12 as escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def script_source(program: str) -> Markup:
    """The source of a Content-Security-Policy that lets this one script of a page run, and none where there is none."""
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'" if program else "'none'")


def write_page(page: Path, template: Path, **values: object) -> None:
    """Write the text that `fill_template` makes to the file `page`, whole or not at all."""
    write_whole(page, fill_template(template, **values))
