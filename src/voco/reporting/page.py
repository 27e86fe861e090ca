"""Sections of a report, and the page that they make."""

import base64
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup


class Picture(NamedTuple):
    """A chart or a picture.

    Attributes:
        content: An ``svg`` or ``img`` element.
        caption: Below it.
        wide: Whether it takes the whole width.
    """

    content: Markup
    caption: str = ""
    wide: bool = False


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        caption: Above it.
        columns: Headings.
        rows: The first cell of a row is its heading.
        note: Below it.
        folded: Whether it is shown only when asked for.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    folded: bool = False


@dataclass
class Section:
    """A part of the page."""

    title: str
    lead: list[str] = field(default_factory=list)
    """Sentences; the first is set large."""
    warnings: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Names and values, in two columns."""


def chart(svg: str, caption: str = "", *, wide: bool = False) -> Picture:
    """A drawn chart."""
    return Picture(Markup(svg), caption, wide)


def photograph(file: Path, words: str, caption: str = "") -> Picture:
    """A PNG file, taken into the page."""
    data = base64.b64encode(file.read_bytes()).decode()
    image = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(words, data)
    return Picture(image, caption, wide=True)


def render(title: str, made_by: str, sections: list[Section]) -> str:
    """The page: one HTML file that needs nothing else."""
    source = resources.files("voco.reporting").joinpath("page.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(source)
    return template.render(title=title, made_by=made_by, sections=sections)
