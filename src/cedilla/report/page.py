"""The parts of a page, and their rendering as one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from cedilla.report.look import CSS_PIXELS, FILE_PIXELS, Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Plain text; `warning` sets it apart from its surroundings."""

    kind: ClassVar[str] = "paragraph"
    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bullets:
    """A list, such as the limits of the evidence."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell, with a second line in small letters, such as an interval."""

    text: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of a table under a common heading; the first cell of each is its header."""

    rows: Sequence[Sequence[Cell]]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; `words` are the numbers of the columns that hold words, not numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    groups: Sequence[Group]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure in every look; `name` is its file's in ``plots/``."""

    kind: ClassVar[str] = "picture"
    name: str
    alt: str
    caption: str
    images: Mapping[Look, bytes]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Long text that is folded on the screen and open on paper."""

    kind: ClassVar[str] = "details"
    summary: str
    text: str


Block = Paragraph | Bullets | Table | Picture | Details


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, the sentence that says what was found, and what it rests on."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One headline result, a sentence or a few."""

    tag: str
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole report."""

    title: str
    about: Sequence[str]
    made: str
    findings: Sequence[Finding]
    notices: Sequence[str]
    left_out: Sequence[str]
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        blocks = [block for section in self.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Picture)]

    def html(self) -> str:
        """The page as one file: inline style and images, no script, nothing fetched."""
        environment = Environment(
            loader=PackageLoader("cedilla", "report"),
            autoescape=True,
            finalize=_unbroken,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["source"] = _source
        environment.globals["size"] = _size
        return environment.get_template("template.html").render(page=self)


def _unbroken(value: object) -> object:
    """Keep a per cent sign on the line of its number."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


def _source(picture: Picture, *, dark: bool, narrow: bool) -> str:
    image = picture.images[Look(dark=dark, narrow=narrow)]
    return f"data:image/png;base64,{b64encode(image).decode()}"


def _size(picture: Picture, *, narrow: bool) -> dict[str, int]:
    """Width and height in CSS pixels, from the PNG's header, so that the page does not jump."""
    header = picture.images[Look(narrow=narrow)][16:24]
    pixels = {"width": int.from_bytes(header[:4]), "height": int.from_bytes(header[4:])}
    return {name: round(value * CSS_PIXELS / FILE_PIXELS) for name, value in pixels.items()}
