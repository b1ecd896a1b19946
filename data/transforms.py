"""Augmentations that move images, calibration and ground truth together.

An `Augmentation` is drawn once a sample; pure functions then say what it does to the pixels' coordinates, to
the car's frame and to the polylines, so that a test can follow a point through all three.
"""

from dataclasses import dataclass

import numpy as np

from data.geometry import transform_plane
from data.noisy_lines import MOST_COPIES
from data.polylines import clip_line, line_length
from utils.frame import CAMERAS

# A line shorter than this (metres) is numerical dust of the map union, no target to learn.
MIN_LENGTH_M = 0.1
MOST_ROTATION_DEG = 45  # ground truth ends with the range, so corners that turn in are empty: more of them the further
MOST_ZOOM = 0.9  # of an image's window; a tenth of its width and height is left to look at


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly to vary the training samples; the defaults change nothing."""

    mirror_probability: float = 0.0  # chance that left and right are exchanged
    rotation_deg: float = 0.0  # the car's frame is turned by up to this many degrees either way
    zoom: float = 0.0  # each image's window shrinks by up to this share and moves within what it leaves
    brightness: float = 0.0  # factor drawn from 1 +- this, one for all cameras
    contrast: float = 0.0  # as brightness
    saturation: float = 0.0  # as brightness
    noisy_copies: int = 0  # of every line, for the decoder to put back (data/noisy_lines.py)

    def __post_init__(self):
        limits = {"mirror_probability": 1.0, "rotation_deg": MOST_ROTATION_DEG, "zoom": MOST_ZOOM,
                  "noisy_copies": MOST_COPIES}
        for name, value in vars(self).items():
            limit = limits.get(name, 1.0)
            if not 0.0 <= value <= limit:
                raise ValueError(f"AugmentConfig.{name}: {value}, expected 0 to {limit:g}; choose one there")


@dataclass(frozen=True)
class Augmentation:
    """What happens to one sample. The default is nothing."""

    mirror: bool = False
    rotation_rad: float = 0.0  # counter-clockwise seen from above
    # for each camera of the record: zoom, place x, place y, as crop_window takes them
    windows: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),) * len(CAMERAS)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def draw_augmentation(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw one sample's augmentation; the same generator state gives the same one."""
    mirror = rng.random() < config.mirror_probability
    rotation = np.deg2rad(rng.uniform(-1.0, 1.0) * config.rotation_deg)
    windows = rng.random((len(CAMERAS), 3)) * [config.zoom, 1.0, 1.0]
    brightness, contrast, saturation = rng.uniform(-1.0, 1.0, 3)
    return Augmentation(
        mirror=bool(mirror),
        rotation_rad=float(rotation),
        windows=tuple(tuple(window) for window in windows.tolist()),
        brightness=1.0 + config.brightness * brightness,
        contrast=1.0 + config.contrast * contrast,
        saturation=1.0 + config.saturation * saturation,
    )


def crop_window(
    image_size: tuple[int, int],
    crop_top: float,
    zoom: float = 0.0,
    place_x: float = 0.0,
    place_y: float = 0.0,
) -> np.ndarray:
    """The part of an image that is used: x0, y0, x1, y1 [4] in source pixels, edges at whole numbers.

    image_size: (W, H); crop_top: share of the height cut off the top; zoom: share by which the rest shrinks;
    place_x, place_y: where the smaller window lies in the rest, 0 left or top, 1 right or bottom.
    """
    width, height = float(image_size[0]), float(image_size[1])
    top = crop_top * height
    x0 = place_x * zoom * width
    y0 = top + place_y * zoom * (height - top)
    return np.array([x0, y0, x0 + (1 - zoom) * width, y0 + (1 - zoom) * (height - top)])


def pixel_transform(window: np.ndarray, size: tuple[int, int], mirror: bool = False) -> np.ndarray:
    """Source pixels to pixels of the resized window, as a matrix [4, 4] on (u * depth, v * depth, depth, 1).

    Pixel centres are whole numbers in both, so u' = (u + 0.5 - x0) * scale - 0.5; size: (H, W).
    """
    height, width = size
    scale_x = width / (window[2] - window[0])
    scale_y = height / (window[3] - window[1])
    matrix = np.eye(4)
    matrix[0, 0], matrix[0, 2] = scale_x, (0.5 - window[0]) * scale_x - 0.5
    matrix[1, 1], matrix[1, 2] = scale_y, (0.5 - window[1]) * scale_y - 0.5
    if mirror:
        flip = np.eye(4)
        flip[0, 0], flip[0, 2] = -1.0, width - 1.0
        matrix = flip @ matrix
    return matrix


def frame_transform(augmentation: Augmentation) -> np.ndarray:
    """Record's LiDAR frame to the augmented sample's [4, 4]: turned about z, then mirrored in x."""
    cos, sin = np.cos(augmentation.rotation_rad), np.sin(augmentation.rotation_rad)
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    if augmentation.mirror:
        matrix[0] *= -1.0
    return matrix


def transform_lines(
    labels: np.ndarray, pts_m: list[np.ndarray], augmentation: Augmentation, pc_range: tuple[float, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ground truth in the augmented frame: labels [G'] and polylines [n, 2] in metres, dust left out.

    Rings stay closed, and keep their sense of rotation in the mirror. After a turn the lines are cut to
    pc_range again; what the turn brings in at the corners was never in the cache and is missing there (at
    5 degrees up to 2.6 m at the far ends of 60 x 30 m).
    """
    matrix = frame_transform(augmentation)
    low, high = np.array(pc_range[:2]), np.array(pc_range[3:5])
    kept_labels, kept_pts = [], []
    for label, line in zip(labels.tolist(), pts_m, strict=True):
        moved = transform_plane(line, matrix)
        if augmentation.mirror:
            moved = moved[::-1]
        pieces = clip_line(moved, low, high) if augmentation.rotation_rad else [moved]
        pieces = [piece for piece in pieces if line_length(piece) >= MIN_LENGTH_M]
        kept_labels += [label] * len(pieces)
        kept_pts += pieces
    return np.array(kept_labels, np.int64), kept_pts
