"""Tables as plain text."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        .rstrip()
        for row in rows
    ]


def format_score(value: float | None) -> str:
    """Three decimals, or a dash for what is None or NaN."""
    return "-" if value is None or value != value else f"{value:.3f}"
