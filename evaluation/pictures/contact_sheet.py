"""Many samples in one picture: bird's-eye panels in a grid, a few words above each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from evaluation.pictures.canvas import CLASS_COLOURS, GAP, PAPER, draw_legend, draw_scale_bar, draw_text
from evaluation.pictures.drawing import draw_bev
from evaluation.vectors import Vectors
from utils.frame import CLASSES

PANEL_HEIGHT = 360
LINE_WIDTH = 2.5
MAX_CELLS = 400  # at 24 megapixels a hundred, the picture stays one that a viewer opens
SHAPE = 1.6  # width over height that the grid comes near to
TITLE_TEXT, LEGEND_TEXT, CAPTION_TEXT = 24, 18, 15
LINE_HEIGHT = 20  # of a caption
WIDEST_LINE = 2000  # pixels that no line of text exceeds


@dataclass(frozen=True)
class Cell:
    """One sample of a contact sheet."""

    caption: tuple[str, ...]  # lines of text, as many in every cell of a sheet
    panels: tuple[tuple[str, Vectors], ...]  # names and vectors, from left to right; a name may be empty


def draw_contact_sheet(
    title: str, cells: Sequence[Cell], pc_range: Sequence[float], panel_height: int = PANEL_HEIGHT
) -> Image.Image:
    """Cells in reading order below a title, the legend and a scale bar. Scores are not drawn: there is no room."""
    count_lines = [[_count_line(name, vectors) for name, vectors in cell.panels] for cell in cells]
    slot = max(line.width for lines in count_lines for line in lines)  # so that panels stand below each other
    drawn = [
        _draw_cell(cell, lines, slot, pc_range, panel_height) for cell, lines in zip(cells, count_lines, strict=True)
    ]
    width, height = np.max([image.size for image in drawn], axis=0).tolist()
    columns = _columns(len(drawn), width, height)
    rows = math.ceil(len(drawn) / columns)
    heading = _heading(title, panel_height / (pc_range[4] - pc_range[1]))

    gap = 2 * GAP
    grid_width = columns * (width + gap) - gap
    sheet = Image.new(
        "RGB", (max(heading.width, grid_width) + 2 * GAP, heading.height + rows * (height + gap)), PAPER
    )
    sheet.paste(heading, (GAP, 0))
    for index, image in enumerate(drawn):
        row, column = divmod(index, columns)
        sheet.paste(image, (GAP + column * (width + gap), heading.height + row * (height + gap)))
    return sheet


def _columns(count: int, width: int, height: int) -> int:
    """Columns of a grid of `count` cells (W, H pixels) that comes near to SHAPE, with rows of even length."""
    columns = min(count, max(1, round(math.sqrt(count * SHAPE * height / width))))
    return math.ceil(count / math.ceil(count / columns))


def _draw_cell(
    cell: Cell, count_lines: Sequence[Image.Image], slot: int, pc_range: Sequence[float], panel_height: int
) -> Image.Image:
    """The caption above the panels, each below its count line and at least `slot` pixels from the next."""
    panels = [
        draw_bev(Vectors(vectors.labels, vectors.pts_m), pc_range, panel_height, LINE_WIDTH)
        for _, vectors in cell.panels
    ]
    captions = [_text_line(text) for text in cell.caption]
    step = max(slot, panels[0].width) + GAP
    top = LINE_HEIGHT * len(captions)
    width = max(step * len(panels) - GAP, *(line.width for line in captions))
    image = Image.new("RGB", (width, top + LINE_HEIGHT + 2 + panel_height), PAPER)
    for index, line in enumerate(captions):
        image.paste(line, (0, index * LINE_HEIGHT))
    for index, (line, panel) in enumerate(zip(count_lines, panels, strict=True)):
        image.paste(line, (index * step, top))
        image.paste(panel, (index * step, top + LINE_HEIGHT + 2))
    return image


def _text_line(text: str) -> Image.Image:
    """One line of a caption, as wide as its text."""
    image = Image.new("RGB", (WIDEST_LINE, LINE_HEIGHT), PAPER)
    right = draw_text(ImageDraw.Draw(image), (0, LINE_HEIGHT / 2), text, CAPTION_TEXT, "lm")
    return image.crop((0, 0, math.ceil(right), LINE_HEIGHT))


def _count_line(name: str, vectors: Vectors) -> Image.Image:
    """A panel's name and how many lines of each class it shows, as wide as its content."""
    image = Image.new("RGB", (WIDEST_LINE, LINE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    middle, half = LINE_HEIGHT / 2, 5
    right = draw_text(draw, (0, middle), name, CAPTION_TEXT, "lm") + 8 if name else 0.0
    for colour, count in zip(CLASS_COLOURS, np.bincount(vectors.labels, minlength=len(CLASSES)), strict=True):
        draw.rectangle((right, middle - half, right + 2 * half, middle + half), fill=colour)
        right = draw_text(draw, (right + 2 * half + 4, middle), str(count), CAPTION_TEXT, "lm") + 9
    return image.crop((0, 0, math.ceil(right - 9), LINE_HEIGHT))


def _heading(title: str, scale: float) -> Image.Image:
    """Title above legend and scale bar (pixels a metre), as wide as its content."""
    image = Image.new("RGB", (WIDEST_LINE, 92), PAPER)
    draw = ImageDraw.Draw(image)
    title_right = draw_text(draw, (0, 26), title, TITLE_TEXT, "lm")
    legend_right = draw_legend(draw, (0, 62), LEGEND_TEXT, dashed_truth=False)
    bar_right = draw_scale_bar(draw, (legend_right + 3 * LEGEND_TEXT, 62), scale, LEGEND_TEXT)
    return image.crop((0, 0, math.ceil(max(title_right, bar_right)), image.height))
