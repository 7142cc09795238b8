"""HTML pages: one file each, without network, from a template that lies beside the code that fills it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from raypaml.counting import epoch_number
from raypaml.files import write_whole

SHARED = Path(__file__).parent
"""Folder of the macros that templates share."""


def write_page(page: Path, template: Path, **values: Any) -> None:
    """Fill a template and write the page, whole or not at all; a value that the template lacks is an error.

    Args:
        page: the file to write.
        template: Jinja file; it may import `macros.html.j2`, and writes epochs by the filter `epoch_number`.
        values: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, SHARED]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["epoch_number"] = epoch_number
    write_whole(page, environment.get_template(template.name).render(values))
