"""Camera images as pictures: JPEG decoding, crop and resize in one step, colour changes. No torch."""

import math
import os

import numpy as np
from PIL import Image, ImageEnhance

from utils.errors import UserError

# Bytes, so nearly every JPEG at once. Pillow's own 64 KB give the decoder pieces, each joined to the rest of the last.
READ_AT_A_TIME = 2**20


def load_image(
    path: str, source_size: tuple[int, int], window: np.ndarray, size: tuple[int, int], sample_token: str
) -> Image.Image:
    """Decode a JPEG and resize a window of it, averaging over area.

    path: the file; source_size: (W, H) that the GT cache states for it; window: x0, y0, x1, y1 in source
    pixels, edges at whole numbers (the centre of the first pixel is 0.5); size: (H, W) of the result.
    The decoder leaves out the finest frequencies where the target is at most half as large, which is most of
    its time. Raises UserError, naming the sample, for a missing, broken or wrongly sized file.
    """
    image, factor = decode(path, source_size, decoder_reduction(window, size), sample_token)
    return image.resize(size[::-1], Image.Resampling.HAMMING, box=tuple(window / factor))


def decode(
    path: str, source_size: tuple[int, int], reduction: int, sample_token: str
) -> tuple[Image.Image, float]:
    """A JPEG as RGB, smaller by a reduction of 1, 2, 4 or 8, and by what factor it really is smaller.

    Other arguments and errors as load_image's.
    """
    try:
        with Image.open(path) as image:
            if image.size != tuple(source_size):
                raise UserError(
                    f"{path}: {image.size[0]}x{image.size[1]} pixels, sample {sample_token} expects "
                    f"{source_size[0]}x{source_size[1]}; restore the file or generate the GT cache again"
                )
            drafted = image.draft("RGB", (source_size[0] // reduction, source_size[1] // reduction))
            image.decodermaxblock = READ_AT_A_TIME
            image.load()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such image, sample {sample_token} needs it; unpack the nuScenes archive with it"
        ) from error
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"{path}: not a whole JPEG ({error}), sample {sample_token} needs it; "
            f"unpack it again from the nuScenes archive"
        ) from error
    if image.mode != "RGB":
        image = image.convert("RGB")
    # The decoder rounds the size up where its reduction leaves a rest; the box it reports is not rounded.
    return image, source_size[0] / drafted[1][2] if drafted else 1.0


def adjust_colours(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Scale brightness, the distance from mid-grey, and the distance from grey; 1 leaves each as it is."""
    if brightness != 1.0 or contrast != 1.0:
        values = (np.arange(256) * brightness - 127.5) * contrast + 127.5
        table = np.clip(np.rint(values), 0, 255).astype(np.uint8).tolist()
        image = image.point(table * 3)
    if saturation != 1.0:
        image = ImageEnhance.Color(image).enhance(saturation)
    return image


def image_exists(dataroot: str, relative_path: str) -> bool:
    """Whether the image file is there; says nothing about its content."""
    return os.path.isfile(os.path.join(dataroot, relative_path))


def decoder_reduction(window: np.ndarray, size: tuple[int, int]) -> int:
    """The largest power of two, at most 8, by which the decoder may shrink without going below the target."""
    spare = min((window[3] - window[1]) / size[0], (window[2] - window[0]) / size[1])
    return 2 ** max(0, min(3, int(math.log2(spare)) if spare >= 1 else 0))
