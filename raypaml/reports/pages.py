"""Fills the templates of pages, each of which lies beside the code that fills it; a page needs no network."""

from __future__ import annotations

from pathlib import Path

import jinja2

from raypaml.counting import epoch_number
from raypaml.files import write_whole
from raypaml.reports.tables import figure, percent

SHARED = Path(__file__).parent
"""Folder of the macros that templates share."""


def fill_template(template: Path, **values: object) -> str:
    """The text of a template with its values; a value that the template names and does not get is an error.

    Args:
        template: Jinja file. An HTML template (`.html.j2`) escapes values and may import `macros.html.j2`; any template
            has the filter `epoch_number` and the functions `figure` and `percent` of `reports.tables`.
        values: the values, by the names that the template uses.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, SHARED]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=not template.name.endswith(".html.j2"),
    )
    environment.filters["epoch_number"] = epoch_number
    environment.globals.update(figure=figure, percent=percent)
    return environment.get_template(template.name).render(values)


def write_page(page: Path, template: Path, **values: object) -> None:
    """Write the text that `fill_template` makes to the file `page`, whole or not at all."""
    write_whole(page, fill_template(template, **values))
