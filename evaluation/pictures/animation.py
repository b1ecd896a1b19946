"""Frames as an animated image, WebP or GIF."""

from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import Image

from evaluation.pictures.canvas import CAR, CLASS_COLOURS, GRID, HALO, INK, PAPER

FORMATS = {".webp": "WEBP", ".gif": "GIF"}
# Thin lines cover few pixels: a palette fitted to the photographs alone would leave their colours out.
_KEPT_COLOURS = (*CLASS_COLOURS, PAPER, INK, GRID, CAR, HALO)


def save_animation(file: BinaryIO, frames: Iterable[Image.Image], fps: float, suffix: str) -> None:
    """Write RGB frames of one size (at least one) that repeat for ever; suffix is one of FORMATS."""
    options = {"quality": 85, "method": 4, "kmin": 0, "kmax": 1}  # whole frames: differences leave ghosts of old lines
    if suffix == ".gif":
        frames, options = map(_with_palette, frames), {"optimize": False}
    frames = iter(frames)
    first = next(frames)
    first.save(
        file, FORMATS[suffix], save_all=True, append_images=frames, duration=round(1000 / fps), loop=0, **options
    )


def _with_palette(frame: Image.Image) -> Image.Image:
    """An RGB frame in 256 colours, the drawn ones exact."""
    first_kept = 256 - len(_KEPT_COLOURS)
    reduced = frame.quantize(first_kept, dither=Image.Dither.NONE)
    indices, rgb = np.array(reduced), np.asarray(frame)
    for number, colour in enumerate(_KEPT_COLOURS):
        indices[np.all(rgb == colour, axis=-1)] = first_kept + number
    exact = Image.fromarray(indices)  # 8-bit grey, which a palette turns into colours
    palette = reduced.getpalette()[: 3 * first_kept]
    palette += [0] * (3 * first_kept - len(palette))  # of a frame with fewer colours
    exact.putpalette(palette + [value for colour in _KEPT_COLOURS for value in colour])
    return exact
