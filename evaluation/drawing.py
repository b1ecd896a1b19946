"""Pictures of vectors: a bird's-eye panel, a camera panel, and both for a whole sample.

Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart. Where ground truth shares
a camera panel with predictions, it is dashed and white: two lines of one colour would run together.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.geometry import lidar2img_matrix
from data.records import SampleRecord
from evaluation.projection import dash_line, project_line
from evaluation.vectors import Vectors
from utils.frame import CAMERAS

CLASS_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115))  # orange, sky blue, bluish green
CLASS_TITLES = ("lane or road divider", "pedestrian crossing", "road boundary")
INK, PAPER, GRID, CAR = (40, 40, 40), (255, 255, 255), (226, 226, 226), (110, 110, 110)
ASPHALT = (90, 90, 90)  # behind white dashes in the legend
HALO = (20, 20, 20)  # around lines on photographs
DASH = (1.2, 0.8)  # metres drawn, metres not
CAMERA_ROWS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
# A nuScenes car (Renault Zoe) around its LIDAR_TOP: half the width, rear end, front end, metres.
CAR_OUTLINE = (0.87, -1.65, 2.43)
SMOOTHING = 2  # panels are drawn this much larger and averaged down
GAP = 12  # pixels between panels


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
        _draw_line(draw, pixels(np.array([[pc_range[0], at], [pc_range[3], at]])), GRID, SMOOTHING)
    for at in np.arange(np.ceil(pc_range[0] / 10) * 10, pc_range[3] + 0.1, 10):
        _draw_line(draw, pixels(np.array([[at, pc_range[1]], [at, pc_range[4]]])), GRID, SMOOTHING)
    _draw_car(draw, pixels)
    for label, pts_m in zip(vectors.labels, vectors.pts_m, strict=True):
        _draw_line(draw, pixels(pts_m), CLASS_COLOURS[label], line_width * SMOOTHING)
    image = image.resize(size, Image.Resampling.BOX)

    draw = ImageDraw.Draw(image)
    if vectors.scores is not None:
        _draw_scores(draw, vectors, [(pixels(pts_m) + 0.5) / SMOOTHING for pts_m in vectors.pts_m], size)
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
            _draw_line(draw, piece, HALO if halo else colour, (width + 2.0 * halo) * SMOOTHING)
    return image.resize(size, Image.Resampling.BOX)


def draw_sample(
    record: SampleRecord,
    images: Sequence[Image.Image],
    ground_truth: Vectors | None,
    predictions: Vectors | None,
    pc_range: Sequence[float],
    camera_width: int = 560,
) -> Image.Image:
    """One picture of a sample: bird's-eye panels on the left, the six cameras on the right.

    images: V photographs in the order of CAMERAS, of any size (record.image_sizes says what the calibration
    is for). With both kinds of vectors, each has its own bird's-eye panel, and in the cameras predictions are
    solid and ground truth is dashed white.
    """
    camera_height = round(camera_width * record.image_sizes[0, 1] / record.image_sizes[0, 0])
    cameras = _camera_grid(record, images, ground_truth, predictions, (camera_width, camera_height))
    shown = [("Ground truth", ground_truth), ("Prediction", predictions)]
    shown = [(title, vectors) for title, vectors in shown if vectors is not None]
    heading = _heading(record, cameras.width, both=len(shown) == 2)
    title_height, foot_height = 36, 30
    height = heading.height + cameras.height
    map_height = height - title_height - foot_height
    panels = [(title, draw_bev(vectors, pc_range, map_height)) for title, vectors in shown]

    width = sum(panel.width + GAP for _, panel in panels) + cameras.width + 2 * GAP
    picture = Image.new("RGB", (width, height + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    left = GAP
    for title, panel in panels:
        _text(draw, (left + panel.width / 2, GAP + title_height / 2), title, 24, "mm")
        picture.paste(panel, (left, GAP + title_height))
        _draw_scale_bar(draw, (left + 1, GAP + height - 10), map_height / (pc_range[4] - pc_range[1]))
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
) -> Image.Image:
    """The six cameras in two rows, with a name on each."""
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
            panel = draw_camera(images[view], matrix, record.ground_z, solid, dashed, size)
            draw = ImageDraw.Draw(panel)
            title = name.removeprefix("CAM_").replace("_", " ").lower()
            _text(draw, (10, 8), title, 22, "la", fill=PAPER, outline=HALO)
            grid.paste(panel, (column * (size[0] + gap), row * (size[1] + gap)))
    return grid


def _heading(record: SampleRecord, width: int, both: bool) -> Image.Image:
    """Scene and token above the legend."""
    heading = Image.new("RGB", (width, 84), PAPER)
    draw = ImageDraw.Draw(heading)
    _text(draw, (4, 18), f"{record.scene_name}  {record.location}  {record.sample_token}", 22, "lm")
    left = 4.0
    for colour, title in zip(CLASS_COLOURS, CLASS_TITLES, strict=True):
        draw.line((left, 56, left + 44, 56), fill=colour, width=6)
        left = _text(draw, (left + 54, 56), title, 22, "lm") + 36
    if both:
        draw.rectangle((left, 46, left + 44, 66), fill=ASPHALT)
        for dash in range(3):
            draw.line((left + 3 + 14 * dash, 56, left + 12 + 14 * dash, 56), fill=PAPER, width=4)
        _text(draw, (left + 54, 56), "ground truth, in the cameras", 22, "lm")
    return heading


def _draw_line(
    draw: ImageDraw.ImageDraw, pts: np.ndarray, colour: tuple[int, int, int], width: float
) -> None:
    """A polyline [n, 2] in pixels with round joins and ends."""
    draw.line([tuple(point) for point in pts.tolist()], fill=colour, width=round(width), joint="curve")
    radius = width / 2 - 0.5
    for x, y in pts[[0, -1]].tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_car(draw: ImageDraw.ImageDraw, pixels) -> None:
    """The outline of the car and an arrowhead that says where its front is."""
    half, rear, front = CAR_OUTLINE
    left_front, right_rear = pixels(np.array([[-half, front], [half, rear]])).tolist()
    draw.rounded_rectangle((*left_front, *right_rear), radius=8, fill=CAR)
    arrow = pixels(np.array([[-half * 0.6, 0.4], [0.0, front - 0.4], [half * 0.6, 0.4]]))
    draw.polygon([tuple(point) for point in arrow.tolist()], fill=PAPER)


def _draw_scale_bar(draw: ImageDraw.ImageDraw, at: tuple[float, float], scale: float) -> None:
    """Ten metres at `scale` pixels a metre, to the right of `at`, and their name."""
    left, middle = at
    right = left + 10 * scale
    draw.line((left, middle, right, middle), fill=INK, width=3)
    for x in (left, right):
        draw.line((x, middle - 6, x, middle + 6), fill=INK, width=3)
    _text(draw, (right + 10, middle), "10 m", 20, "lm")


def _draw_scores(
    draw: ImageDraw.ImageDraw, vectors: Vectors, lines: Sequence[np.ndarray], size: tuple[int, int]
) -> None:
    """Each line's score on its middle point, best first, left out where another one stands already."""
    font = ImageFont.load_default(size=15)
    taken: list[tuple[float, float, float, float]] = []
    for index in np.argsort(-vectors.scores, kind="stable"):
        text = f"{vectors.scores[index]:.2f}"
        for share in (0.5, 0.35, 0.65, 0.2, 0.8):
            x, y = lines[index][int(share * (len(lines[index]) - 1))].tolist()
            x, y = np.clip(x, 22, size[0] - 22), np.clip(y, 12, size[1] - 12)
            left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor="mm")
            box = left - 3, top - 3, right + 3, bottom + 3
            if all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken):
                taken.append(box)
                draw.rectangle(box, fill=PAPER, outline=CLASS_COLOURS[vectors.labels[index]])
                draw.text((x, y), text, fill=INK, font=font, anchor="mm")
                break


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str,
    fill: tuple[int, int, int] = INK,
    outline: tuple[int, int, int] | None = None,
) -> float:
    """Write text and return where it ends on the right, in pixels."""
    font = ImageFont.load_default(size=size)
    stroke = 2 if outline else 0
    draw.text(at, text, fill=fill, font=font, anchor=anchor, stroke_width=stroke, stroke_fill=outline)
    return draw.textbbox(at, text, font=font, anchor=anchor)[2]
