"""Small pieces of HTML: tables and images. Whatever is given to them is escaped here."""

import base64
import json
import math
from collections.abc import Sequence
from html import escape

from evaluation.report.gallery import Picture
from evaluation.report.run_folder import number

_DEEPEST = 2  # settings nested deeper are shown as JSON


def html_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], last_is_total: bool = False, kind: str = ""
) -> str:
    """A table in a box that scrolls sideways on a narrow page; kind is its CSS class."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for index, (name, *cells) in enumerate(rows):
        mark = ' class="total"' if last_is_total and index == len(rows) - 1 else ""
        data = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        body.append(f'<tr{mark}><th scope="row">{escape(str(name))}</th>{data}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{escape(kind)}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def image_tag(picture: Picture) -> str:
    """An <img> that carries its picture as a data URI."""
    content = base64.b64encode(picture.content).decode()
    width, height = picture.size
    return (
        f'<img alt="{escape(picture.alt)}" width="{width}" height="{height}" '
        f'src="data:{picture.mime};base64,{content}">'
    )


def class_swatch(style: str) -> str:
    """A short line in the colour of a CSS class, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true"><g class="{escape(style)}">'
        '<polyline points="0,6 26,6"/></g></svg>'
    )


def format_number(value: object, form: str = ".3f") -> str:
    """A number from a file in a format, a dash for anything else."""
    found = number(value)
    return format(found, form) if math.isfinite(found) else "–"


def format_count(count: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def flatten_settings(value: object, prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested settings as rows of dotted names and values."""
    if not isinstance(value, dict) or depth > _DEEPEST:
        return [(prefix or "value", value if isinstance(value, str) else json.dumps(value))]
    rows = []
    for name, inner in value.items():
        rows += flatten_settings(inner, f"{prefix}.{name}" if prefix else name, depth + 1)
    return rows
