"""Pictures of vectors: a bird's-eye panel, a camera panel, and both for a whole sample.

Where ground truth shares a camera panel with predictions, it is dashed and white: two lines of one colour
would run together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data.geometry import lidar2img_matrix
from data.records import SampleRecord
from evaluation.pictures.canvas import (
    CAR,
    CLASS_COLOURS,
    GAP,
    GRID,
    HALO,
    INK,
    PAPER,
    SMOOTHING,
    draw_legend,
    draw_line,
    draw_scale_bar,
    draw_text,
    font,
)
from evaluation.pictures.projection import dash_line, project_line
from evaluation.vectors import Vectors
from utils.frame import CAMERAS

DASH = (1.2, 0.8)  # metres drawn, metres not
CAMERA_ROWS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
# A nuScenes car (Renault Zoe) around its LIDAR_TOP: half the width, rear end, front end, metres.
CAR_OUTLINE = (0.87, -1.65, 2.43)
SCORE_TEXT = 15  # pixels


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels of a sample's picture."""

    camera_width: int
    text: int
    line_width: float
    scores: bool  # whether predictions carry their scores: small panels have no room for them


FULL = Layout(camera_width=560, text=22, line_width=4.0, scores=True)
FRAME = Layout(camera_width=300, text=15, line_width=2.5, scores=False)  # of an animation


def draw_bev(
    vectors: Vectors, pc_range: Sequence[float], height: int, line_width: float = 4.0
) -> Image.Image:
    """Vectors from above in a panel `height` pixels high: forward is up, the car at the origin, 10 m grid.

    Lines with scores carry them as a label where there is room.
    """
    scale = height / (pc_range[4] - pc_range[1])  # pixels a metre
    size = round((pc_range[3] - pc_range[0]) * scale), height
    image = Image.new("RGB", (size[0] * SMOOTHING, size[1] * SMOOTHING), PAPER)
    draw = ImageDraw.Draw(image)

    def pixels(pts_m: np.ndarray) -> np.ndarray:
        pts_m = np.asarray(pts_m, np.float64)
        at = np.stack([pts_m[:, 0] - pc_range[0], pc_range[4] - pts_m[:, 1]], axis=1)
        return at * scale * SMOOTHING - 0.5

    for at in np.arange(np.ceil(pc_range[1] / 10) * 10, pc_range[4] + 0.1, 10):
        draw_line(draw, pixels(np.array([[pc_range[0], at], [pc_range[3], at]])), GRID, SMOOTHING)
    for at in np.arange(np.ceil(pc_range[0] / 10) * 10, pc_range[3] + 0.1, 10):
        draw_line(draw, pixels(np.array([[at, pc_range[1]], [at, pc_range[4]]])), GRID, SMOOTHING)
    _draw_car(draw, pixels)
    for label, pts_m in zip(vectors.labels, vectors.pts_m, strict=True):
        draw_line(draw, pixels(pts_m), CLASS_COLOURS[label], line_width * SMOOTHING)
    image = image.resize(size, Image.Resampling.BOX)

    draw = ImageDraw.Draw(image)
    if vectors.scores is not None:
        half, rear, front = CAR_OUTLINE
        car = (pixels(np.array([[-half, front], [half, rear]])) + 0.5) / SMOOTHING
        lines = [(pixels(pts_m) + 0.5) / SMOOTHING for pts_m in vectors.pts_m]
        _draw_scores(draw, vectors, lines, size, car.ravel().tolist())
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=INK)
    return image


def draw_camera(
    image: Image.Image,
    lidar2img: np.ndarray,
    ground_z: float,
    solid: Vectors | None,
    dashed: Vectors | None,
    size: tuple[int, int],
    line_width: float = 4.0,
) -> Image.Image:
    """An image with vectors projected onto the road plane z = ground_z, at `size` (W, H) pixels.

    `solid` vectors take the colours of their classes, `dashed` ones are white and thinner.
    lidar2img [4, 4] is that of `image` as given, from metres in the LiDAR frame.
    """
    drawn_size = size[0] * SMOOTHING, size[1] * SMOOTHING
    factor = np.array(drawn_size) / np.array(image.size)
    image = image.convert("RGB").resize(drawn_size, Image.Resampling.BICUBIC)
    # Pixel centres lie at whole numbers, so half a pixel comes off before scaling and goes back after.
    to_drawn = np.diag([*factor, 1.0])
    to_drawn[:2, 2] = (factor - 1) / 2
    projection = to_drawn @ lidar2img[:3]  # [3, 4]
    draw = ImageDraw.Draw(image)
    lines = []  # (metres [n, 2], colour, width)
    for label, pts_m in zip(solid.labels, solid.pts_m, strict=True) if solid else ():
        lines.append((pts_m, CLASS_COLOURS[label], line_width))
    for pts_m in dashed.pts_m if dashed else ():
        lines += [(part, PAPER, line_width / 2) for part in dash_line(pts_m, *DASH)]
    pieces = [
        (piece, colour, width)
        for pts_m, colour, width in lines
        for piece in project_line(pts_m, projection, ground_z, drawn_size)
    ]
    for halo in (True, False):  # all halos below all lines
        for piece, colour, width in pieces:
            draw_line(draw, piece, HALO if halo else colour, (width + 2.0 * halo) * SMOOTHING)
    return image.resize(size, Image.Resampling.BOX)


def draw_sample(
    record: SampleRecord,
    images: Sequence[Image.Image],
    ground_truth: Vectors | None,
    predictions: Vectors | None,
    pc_range: Sequence[float],
    layout: Layout = FULL,
    title: str | None = None,
) -> Image.Image:
    """One picture of a sample: bird's-eye panels on the left, the six cameras on the right.

    images: V photographs in the order of CAMERAS, of any size (record.image_sizes says what the calibration
    is for). With both kinds of vectors, each has its own bird's-eye panel, and in the cameras predictions are
    solid and ground truth is dashed white. title: by default scene, city and token.
    """
    camera_height = round(layout.camera_width * record.image_sizes[0, 1] / record.image_sizes[0, 0])
    camera_size = layout.camera_width, camera_height
    cameras = _camera_grid(record, images, ground_truth, predictions, camera_size, layout)
    shown = [("Ground truth", ground_truth), ("Prediction", predictions)]
    shown = [(name, vectors) for name, vectors in shown if vectors is not None]
    title = title or f"{record.scene_name}  {record.location}  {record.sample_token}"
    heading = _heading(title, cameras.width, layout.text, both=len(shown) == 2)
    name_height, foot_height = round(1.64 * layout.text), round(1.36 * layout.text)
    height = heading.height + cameras.height
    map_height = height - name_height - foot_height
    panels = []
    for name, vectors in shown:
        vectors = vectors if layout.scores else Vectors(vectors.labels, vectors.pts_m)
        panels.append((name, draw_bev(vectors, pc_range, map_height, layout.line_width)))

    width = sum(panel.width + GAP for _, panel in panels) + cameras.width + 2 * GAP
    picture = Image.new("RGB", (width, height + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    left = GAP
    for name, panel in panels:
        draw_text(draw, (left + panel.width / 2, GAP + name_height / 2), name, round(1.1 * layout.text), "mm")
        picture.paste(panel, (left, GAP + name_height))
        scale = map_height / (pc_range[4] - pc_range[1])
        draw_scale_bar(draw, (left + 1, GAP + height - 0.45 * layout.text), scale, round(0.9 * layout.text))
        left += panel.width + GAP
    picture.paste(heading, (left, GAP))
    picture.paste(cameras, (left, GAP + heading.height))
    return picture


def _camera_grid(
    record: SampleRecord,
    images: Sequence[Image.Image],
    ground_truth: Vectors | None,
    predictions: Vectors | None,
    size: tuple[int, int],
    layout: Layout,
) -> Image.Image:
    """The six cameras in two rows, each `size` (W, H) pixels, with a name on each."""
    gap = GAP // 2
    grid = Image.new("RGB", (3 * size[0] + 2 * gap, 2 * size[1] + gap), PAPER)
    solid, dashed = (predictions, ground_truth) if predictions is not None else (ground_truth, None)
    projections = lidar2img_matrix(record.camera_intrinsic, record.cam2lidar)  # [V, 4, 4]
    for row, names in enumerate(CAMERA_ROWS):
        for column, name in enumerate(names):
            view = CAMERAS.index(name)
            factor = np.array(images[view].size) / record.image_sizes[view]
            to_image = np.diag([*factor, 1.0, 1.0])
            to_image[:2, 2] = (factor - 1) / 2
            matrix = to_image @ projections[view]
            panel = draw_camera(images[view], matrix, record.ground_z, solid, dashed, size, layout.line_width)
            draw = ImageDraw.Draw(panel)
            title = name.removeprefix("CAM_").replace("_", " ").lower()
            draw_text(draw, (0.45 * layout.text, 0.36 * layout.text), title, layout.text, "la", PAPER, HALO)
            grid.paste(panel, (column * (size[0] + gap), row * (size[1] + gap)))
    return grid


def _heading(title: str, width: int, text: int, both: bool) -> Image.Image:
    """A line of text above the legend."""
    heading = Image.new("RGB", (width, round(3.8 * text)), PAPER)
    draw = ImageDraw.Draw(heading)
    draw_text(draw, (4, 0.82 * text), title, text, "lm")
    draw_legend(draw, (4, 2.55 * text), text, dashed_truth=both)
    return heading


def _draw_car(draw: ImageDraw.ImageDraw, pixels) -> None:
    """The outline of the car and an arrowhead that says where its front is."""
    half, rear, front = CAR_OUTLINE
    left_front, right_rear = pixels(np.array([[-half, front], [half, rear]])).tolist()
    draw.rounded_rectangle((*left_front, *right_rear), radius=(right_rear[0] - left_front[0]) / 5, fill=CAR)
    arrow = pixels(np.array([[-half * 0.6, 0.4], [0.0, front - 0.4], [half * 0.6, 0.4]]))
    draw.polygon([tuple(point) for point in arrow.tolist()], fill=PAPER)


def _draw_scores(
    draw: ImageDraw.ImageDraw,
    vectors: Vectors,
    lines: Sequence[np.ndarray],
    size: tuple[int, int],
    car: Sequence[float],
) -> None:
    """Each line's score on a point of its visible part, best first, left out where no such place is free.

    lines: N arrays [n, 2] of pixels in a panel of `size` (W, H); car: its box, left, top, right, bottom.
    """
    taken = [tuple(car)]
    for index in np.argsort(-vectors.scores, kind="stable"):
        text = f"{vectors.scores[index]:.2f}"
        visible = lines[index][np.all((lines[index] >= 0) & (lines[index] <= size), axis=1)]
        for share in (0.5, 0.35, 0.65, 0.2, 0.8) if len(visible) else ():
            x, y = visible[int(share * (len(visible) - 1))].tolist()
            x, y = np.clip(x, 22, size[0] - 22), np.clip(y, 12, size[1] - 12)
            left, top, right, bottom = draw.textbbox((x, y), text, font=font(SCORE_TEXT), anchor="mm")
            box = left - 3, top - 3, right + 3, bottom + 3
            if all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken):
                taken.append(box)
                draw.rectangle(box, fill=PAPER, outline=CLASS_COLOURS[vectors.labels[index]])
                draw_text(draw, (x, y), text, SCORE_TEXT, "mm")
                break
