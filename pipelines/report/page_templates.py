"""The templates of pages, which escape all text and refuse a name that is not given."""

from __future__ import annotations

import importlib.resources
import re

import jinja2
from markupsafe import Markup, escape


def page_template(name: str) -> jinja2.Template:
    """Return a template of a page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template(name)


def _code(text: str) -> Markup:
    """Escape a text; mark what is in backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _template(name: str) -> str:
    folder = importlib.resources.files("tidemill.pipelines").joinpath("templates", "report")
    return folder.joinpath(name).read_text(encoding="utf-8")
