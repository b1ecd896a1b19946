"""Which samples a report shows, and their pictures: ground truth and prediction from above, the front cameras."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.geometry import lidar2img_matrix
from data.images import load_image
from data.records import SampleRecord
from evaluation.pictures.drawing import draw_bev, draw_camera
from evaluation.sample_f1 import SampleF1, rank_by_f1, sample_f1
from evaluation.vectors import Vectors
from utils.frame import CAMERAS, CLASSES

FRONT_CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")  # in the order of the page
BEV_HEIGHT = 520  # pixels
CAMERA_WIDTHS = {"CAM_FRONT": 640}
SIDE_WIDTH = 400
JPEG_QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    alt: str
    mime: str
    content: bytes
    size: tuple[int, int]  # W, H in pixels


@dataclass(frozen=True)
class GallerySample:
    """One sample of the gallery."""

    scene: str
    location: str
    token: str
    f1: SampleF1
    maps: tuple[Picture, Picture]  # ground truth, prediction
    cameras: tuple[Picture, ...]  # as FRONT_CAMERAS


def judge_samples(
    predictions: Mapping[str, Vectors], ground_truth: Mapping[str, Vectors], min_scores: np.ndarray
) -> tuple[dict[str, Vectors], list[SampleF1]]:
    """Predictions that reach their class's score [C], and F1 of each sample, in the order of ground_truth."""
    shown = {token: predictions[token].at_least(min_scores) for token in ground_truth}
    return shown, [sample_f1(shown[token], truth) for token, truth in ground_truth.items()]


def choose_samples(scores: list[SampleF1], scenes: Sequence[int], count: int) -> dict[str, list[int]]:
    """Positions of `count` best, median and worst samples, none twice; of few samples a third each.

    scenes: which scene each sample is of. Neighbouring key frames look alike, so a group takes one sample a scene
    as long as there are enough scenes.
    """
    best_first = rank_by_f1(scores, best_first=True)
    count = min(count, max(1, len(best_first) // 3))
    best = _spread(best_first, scenes, count)
    worst = _spread([i for i in rank_by_f1(scores, best_first=False) if i not in best], scenes, count)
    between = [i for i in best_first if i not in best and i not in worst]
    middle = (len(between) - 1) / 2
    from_middle = sorted(range(len(between)), key=lambda place: abs(place - middle))
    median = _spread([between[place] for place in from_middle], scenes, count)
    return {"Best": best, "Median": sorted(median, key=best_first.index), "Worst": worst}


def _spread(ranked: list[int], scenes: Sequence[int], count: int) -> list[int]:
    """The first `count` of the ranked samples from different scenes, then whatever is first; in their order."""
    seen = set()
    firsts = [i for i in ranked if scenes[i] not in seen and not seen.add(scenes[i])]
    chosen = [*firsts, *(i for i in ranked if i not in firsts)][:count]
    return sorted(chosen, key=ranked.index)


def picture_sample(
    record: SampleRecord,
    predictions: Vectors,
    f1: SampleF1,
    dataroot: str | os.PathLike,
    pc_range: Sequence[float],
) -> GallerySample:
    """The pictures of one sample. Raises UserError for an image that is missing or broken."""
    ground_truth = Vectors(record.labels, record.pts_m)
    maps = tuple(
        _encode(_draw_map(vectors, pc_range), "PNG", f"{name} from above: {_counts(vectors)}.")
        for name, vectors in (("Ground truth", ground_truth), ("Prediction", predictions))
    )
    matrices = lidar2img_matrix(record.camera_intrinsic, record.cam2lidar)  # [V, 4, 4]
    cameras = []
    for name in FRONT_CAMERAS:
        view = CAMERAS.index(name)
        source = tuple(record.image_sizes[view].tolist())
        path = os.path.join(dataroot, record.image_paths[view])
        image = load_image(path, source, np.array([0, 0, *source]), source[::-1], record.sample_token)
        width = CAMERA_WIDTHS.get(name, SIDE_WIDTH)
        size = width, round(width * source[1] / source[0])
        drawn = draw_camera(image, matrices[view], record.ground_z, predictions, ground_truth, size, 3.0)
        title = name.removeprefix("CAM_").replace("_", " ").capitalize()
        cameras.append(_encode(drawn, "JPEG", f"{title} camera with predictions and, dashed, ground truth."))
    return GallerySample(record.scene_name, record.location, record.sample_token, f1, maps, tuple(cameras))


def _draw_map(vectors: Vectors, pc_range: Sequence[float]) -> Image.Image:
    """A bird's-eye panel without scores, which would be too small to read on the page."""
    return draw_bev(Vectors(vectors.labels, vectors.pts_m), pc_range, BEV_HEIGHT)


def _counts(vectors: Vectors) -> str:
    counts = np.bincount(vectors.labels, minlength=len(CLASSES)).tolist()
    return ", ".join(f"{count} {name}" for count, name in zip(counts, CLASSES, strict=True))


def _encode(image: Image.Image, kind: str, alt: str) -> Picture:
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}
    image.save(buffer, kind, **options)
    return Picture(alt, f"image/{kind.lower()}", buffer.getvalue(), image.size)
