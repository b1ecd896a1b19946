"""Camera images as the network takes them: small uint8 tensors, resized by torch's vectorised kernels."""

import ctypes

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images import adjust_colours, decode, decoder_reduction

# Pillow shares pixels since 11.2, but there never frees an image that was shared. PILLOW_ALIGNMENT may pad its rows.
_SHARES_PIXELS = tuple(map(int, PIL.__version__.split(".")[:2])) >= (11, 3) and Image.core.get_alignment() == 1


class _ArrowArray(ctypes.Structure):
    """The struct of that name in Arrow's C data interface (arrow.apache.org/docs/format/CDataInterface.html)."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]
_pointer_in_capsule = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


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
    x0, y0, x1, y1 = box = [round(edge / factor) for edge in window.tolist()]
    # [1, 4, H, W], valid as long as `image` lives. Made of a batch, so that its strides tell torch that channels lie
    # together; otherwise torch sorts them apart, which takes nearly as long as the filter.
    pixels = pixels_of(image)[None, y0:y1, x0:x1].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return planes_of(resized.contiguous()), np.array(box) * factor


def planes_of(pixels: Tensor) -> Tensor:
    """The first three channels of uint8 [H, W, 4], contiguous, as planes: [3, H, W]."""
    # Each pixel is one number of 32 bits, and NumPy narrows numbers twice as fast as torch sorts single bytes apart.
    whole = pixels.numpy().view("<u4")[..., 0]
    planes = np.empty((3, *whole.shape), np.uint8)
    planes[0] = whole
    shifted = whole >> 8
    planes[1] = shifted
    shifted >>= 8
    planes[2] = shifted
    return torch.from_numpy(planes)


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB image of Pillow's as uint8 [H, W, 4], to be read only while the image lives; the last byte means nothing.

    These are Pillow's own bytes, which it gives out by Arrow's C data interface: a list of four values for each pixel.
    They are copied where it cannot: before version 11.3, or from an image of more than one of its blocks of 16 MB.
    """
    content = _shared_bytes(image) if _SHARES_PIXELS else None
    if content is None:
        content = bytearray(image.tobytes("raw", "RGBX"))  # torch warns of bytes, which must not be written to
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(image.height, image.width, 4))


def _shared_bytes(image: Image.Image) -> ctypes.Array | None:
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # more than one block
        return None
    array = _ArrowArray.from_address(_pointer_in_capsule(capsule, b"arrow_array"))
    values = array.children[0].contents  # its buffers: validity, which is absent, and the bytes
    return (ctypes.c_uint8 * (4 * image.height * image.width)).from_address(values.buffers[1])


def adjust_pixels(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """adjust_colours on uint8 [3, H, W]."""
    if brightness == contrast == saturation == 1.0:
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    adjusted = adjust_colours(image, brightness, contrast, saturation)
    return torch.from_numpy(np.array(adjusted)).permute(2, 0, 1)
