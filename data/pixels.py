"""Camera images as the network takes them: small uint8 tensors, resized by torch's vectorised kernels."""

import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images import adjust_colours, decode, decoder_reduction

# torch warns once that a tensor of bytes must not be written to. load_pixels only reads it; the warning comes here
# because silencing it at each image takes as long as a quarter of the resizing.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"0", dtype=torch.uint8)


def load_pixels(
    path: str, source_size: tuple[int, int], window: np.ndarray, size: tuple[int, int], sample_token: str
) -> tuple[Tensor, np.ndarray]:
    """A window of a JPEG as uint8 [3, H, W], and the window [4] that it really shows.

    Arguments and errors as load_image's. The decoder leaves out the finest frequencies where the target is at most
    half as large. Then torch resizes with Pillow's bicubic filter, widened to the area of a target pixel, several times
    faster than Pillow, but from whole pixels: the window's edges move to the nearest ones of the decoded image, by at
    most half of its pixels, which are up to 8 of the source's.
    """
    image, factor = decode(path, source_size, decoder_reduction(window, size), sample_token)
    box = [round(edge / factor) for edge in window.tolist()]
    if box != [0, 0, *image.size]:
        image = image.crop(box)
    # Four bytes a pixel are how Pillow holds it: they are copied in one go, and three are not.
    content = torch.frombuffer(image.tobytes("raw", "RGBX"), dtype=torch.uint8)
    pixels = content.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size, mode="bicubic", antialias=True)[0, :3]  # [3, H, W]
    return resized, np.array(box) * factor


def adjust_pixels(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """adjust_colours on uint8 [3, H, W]."""
    if brightness == contrast == saturation == 1.0:
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    adjusted = adjust_colours(image, brightness, contrast, saturation)
    return torch.from_numpy(np.array(adjusted)).permute(2, 0, 1)
