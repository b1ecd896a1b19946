"""What all pictures share: colours, lines, text, the legend and the scale bar.

Colours of the classes are from Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

from functools import lru_cache

import numpy as np
from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]

CLASS_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115))  # orange, sky blue, bluish green
CLASS_TITLES = ("lane or road divider", "pedestrian crossing", "road boundary")
INK, PAPER, GRID, CAR = (40, 40, 40), (255, 255, 255), (226, 226, 226), (110, 110, 110)
ASPHALT = (90, 90, 90)  # behind white dashes in the legend
HALO = (20, 20, 20)  # around lines on photographs
SMOOTHING = 2  # panels are drawn this much larger and averaged down
GAP = 12  # pixels between panels


def draw_line(draw: ImageDraw.ImageDraw, pts: np.ndarray, colour: Colour, width: float) -> None:
    """A polyline [n, 2] in pixels with round joins and ends."""
    draw.line([tuple(point) for point in pts.tolist()], fill=colour, width=round(width), joint="curve")
    radius = width / 2 - 0.5
    for x, y in pts[[0, -1]].tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str,
    fill: Colour = INK,
    outline: Colour | None = None,
) -> float:
    """Write text and return where it ends on the right, in pixels; `anchor` as Pillow names them."""
    stroke = 2 if outline else 0
    draw.text(at, text, fill=fill, font=font(size), anchor=anchor, stroke_width=stroke, stroke_fill=outline)
    return draw.textbbox(at, text, font=font(size), anchor=anchor)[2]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface, `size` pixels high."""
    return ImageFont.load_default(size=size)


def draw_legend(draw: ImageDraw.ImageDraw, at: tuple[float, float], size: int, dashed_truth: bool) -> float:
    """Colours and names of the classes in one row to the right of `at`; returns where it ends on the right.

    dashed_truth: also say that white dashes in the cameras are ground truth.
    """
    left, middle = at
    swatch, space = 2.0 * size, 0.45 * size
    for colour, title in zip(CLASS_COLOURS, CLASS_TITLES, strict=True):
        draw.line((left, middle, left + swatch, middle), fill=colour, width=round(0.27 * size))
        left = draw_text(draw, (left + swatch + space, middle), title, size, "lm") + 1.6 * size
    if dashed_truth:
        draw.rectangle((left, middle - space, left + swatch, middle + space), fill=ASPHALT)
        for dash in np.array([0.14, 0.78, 1.42]) * size:
            draw.line(
                (left + dash, middle, left + dash + 0.41 * size, middle), fill=PAPER, width=max(2, round(0.18 * size))
            )
        title = "ground truth, in the cameras"
        left = draw_text(draw, (left + swatch + space, middle), title, size, "lm") + 1.6 * size
    return left - 1.6 * size


def draw_scale_bar(draw: ImageDraw.ImageDraw, at: tuple[float, float], scale: float, size: int) -> float:
    """Ten metres at `scale` pixels a metre, to the right of `at`, and their name; returns where it ends."""
    left, middle = at
    right = left + 10 * scale
    draw.line((left, middle, right, middle), fill=INK, width=3)
    for x in (left, right):
        draw.line((x, middle - 0.3 * size, x, middle + 0.3 * size), fill=INK, width=3)
    return draw_text(draw, (right + 0.5 * size, middle), "10 m", size, "lm")
