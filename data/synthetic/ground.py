"""The ground of a town as images: one byte a pixel (material, shadow, grain), coloured per scene, in levels.

Pixel (column, row) of level 0 has its centre at global (x0 + column * resolution, y0 + row * resolution).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from shapely.geometry import LineString
from shapely.geometry.base import BaseGeometry
from shapely.ops import substring

from data.synthetic.elements import PaintedLine, Town, oriented_rectangle

GRASS, WALKWAY, KERB, ASPHALT, REPAIR, WHITE, YELLOW, CROSSING = range(8)
NUM_MATERIALS = 8
SHADOW = 8  # added to a material: in the shadow of a building
GRAINS = 16
KERB_WIDTH = 0.28  # metres
LINE_WIDTH = 0.15
DOUBLE_OFFSET = 0.14  # metres between the middle of a double line and each of its strokes
FRACTION_BITS = 4  # of the coordinates given to OpenCV


@dataclass(frozen=True)
class GroundLevel:
    """RGB image [H, W, 3] with pixel (0, 0) centred at global (x0, y0); resolution in metres."""

    image: np.ndarray
    x0: float
    y0: float
    resolution: float

    def pixel_from_global(self) -> np.ndarray:
        """Homography [3, 3] from global (x, y, 1) to (column, row, 1)."""
        scale = 1.0 / self.resolution
        return np.array([[scale, 0.0, -self.x0 * scale], [0.0, scale, -self.y0 * scale], [0.0, 0.0, 1.0]])


class GroundCanvas:
    """Draws a town's ground into an index image (material + shadow) of a given area."""

    def __init__(self, bounds: tuple[float, float, float, float], resolution: float):
        self.x0, self.y0 = bounds[0], bounds[1]
        self.resolution = resolution
        self.bounds = shapely.box(*bounds)
        shapely.prepare(self.bounds)
        shape = (int((bounds[3] - bounds[1]) / resolution) + 1, int((bounds[2] - bounds[0]) / resolution) + 1)
        self.index = np.zeros(shape, np.uint8)

    def fill(self, rings: list[np.ndarray], material: int) -> None:
        """Fill the area between rings [N, 2] (even-odd rule)."""
        origin = np.array([self.x0, self.y0])
        scale = (1 << FRACTION_BITS) / self.resolution
        fixed = [np.round((ring - origin) * scale).astype(np.int32) for ring in rings if len(ring) >= 3]
        if fixed:
            cv2.fillPoly(self.index, fixed, material, lineType=cv2.LINE_8, shift=FRACTION_BITS)

    def fill_geometry(self, geometry, material: int) -> None:
        """Fill a shapely polygon or a collection of them."""
        for part in getattr(geometry, "geoms", [geometry]):
            if part.geom_type == "Polygon" and self.bounds.intersects(part):
                rings = [part.exterior, *part.interiors]
                self.fill([np.asarray(ring.coords) for ring in rings], material)


@dataclass(frozen=True)
class FlatTown:
    """What lies on a town's ground as shapes in the order in which they are drawn, for canvases of any area."""

    surfaces: list[tuple[BaseGeometry, int]]  # shape, material
    marks: list[tuple[np.ndarray, int]]  # ring [N, 2], material
    lines: list[tuple[LineString, BaseGeometry, int]]  # middle, painted area, material
    shadows: np.ndarray  # of convex polygons


def flatten_town(town: Town, sun: tuple[float, float] | None) -> FlatTown:
    """`sun` is the shadow of one metre of height (dx, dy), None without a sun."""
    surfaces = [
        (town.walkway, WALKWAY),
        (town.drivable.boundary.buffer(KERB_WIDTH / 2, quad_segs=2), KERB),
        (town.drivable.buffer(-KERB_WIDTH / 2, join_style="mitre"), ASPHALT),
    ]
    marks = [(patch, REPAIR) for patch in town.patches]
    marks += [(stripe, CROSSING) for crossing in town.crossings for stripe in crossing.stripes]
    marks += [(stop_line.exterior, WHITE) for stop_line in town.stop_lines]
    lines = [
        (LineString(line.pts), _paint(line, town.style.dash), YELLOW if line.color == "yellow" else WHITE)
        for line in town.lines
    ]
    return FlatTown(surfaces, marks, lines, np.array([]) if sun is None else _shadows(town, np.array(sun)))


def draw_town(canvas: GroundCanvas, town: FlatTown) -> None:
    """Draw what of a town lies in the canvas's area."""
    canvas.index[:] = GRASS
    for shape, material in town.surfaces:
        canvas.fill_geometry(shape, material)
    for ring, material in town.marks:
        canvas.fill([ring], material)
    for middle, painted, material in town.lines:
        if canvas.bounds.intersects(middle):
            canvas.fill_geometry(painted, material)
    mask = GroundCanvas(canvas.bounds.bounds, canvas.resolution)
    for shadow in town.shadows[shapely.intersects(canvas.bounds, town.shadows)]:
        mask.fill([shapely.get_coordinates(shadow)], SHADOW)
    canvas.index |= mask.index


def _paint(line: PaintedLine, dash: tuple[float, float]):
    """The painted area of a line."""
    middle = LineString(line.pts)
    if line.pattern == "double":
        strokes = [middle.offset_curve(side * DOUBLE_OFFSET) for side in (-1, 1)]
        return shapely.union_all([stroke.buffer(LINE_WIDTH / 2, cap_style="flat") for stroke in strokes])
    if line.pattern == "dashed":
        starts = np.arange(0.0, middle.length, sum(dash))
        strokes = [substring(middle, s, min(s + dash[0], middle.length)) for s in starts]
        strokes = [stroke for stroke in strokes if stroke.length > 0.2]
        return shapely.union_all([stroke.buffer(LINE_WIDTH / 2, cap_style="flat") for stroke in strokes])
    return middle.buffer(LINE_WIDTH / 2, cap_style="flat")


def _shadows(town: Town, sun: np.ndarray) -> np.ndarray:
    shadows = []
    if town.boxes:
        feet = np.stack([oriented_rectangle(box.x, box.y, box.yaw, *box.size[:2]) for box in town.boxes])  # [N, 4, 2]
        heights = np.array([box.size[2] for box in town.boxes])
        corners = np.concatenate([feet, feet + sun * heights[:, None, None]], axis=1)  # [N, 8, 2]
        shadows.append(shapely.convex_hull(shapely.multipoints(shapely.points(corners))))
    if town.trees:
        centers = np.array([(tree.x, tree.y) for tree in town.trees])
        centers += sun * np.array([tree.height for tree in town.trees])[:, None]
        radii = np.array([tree.radius for tree in town.trees])
        shadows.append(shapely.buffer(shapely.points(centers), radii, quad_segs=16))
    return np.concatenate(shadows) if shadows else np.array([])


def make_grain(rng: np.random.Generator) -> np.ndarray:
    """A tile [1024, 1024] of grain, 0 to GRAINS - 1: fine speckle on broad patches."""
    speckle = rng.normal(0.0, 1.0, (1024, 1024)).astype(np.float32)
    patches = cv2.resize(rng.normal(0.0, 1.0, (24, 24)).astype(np.float32), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    middle = cv2.resize(rng.normal(0.0, 1.0, (160, 160)).astype(np.float32), (1024, 1024))
    grain = 7.5 + 2.0 * speckle + 1.6 * middle + 1.6 * patches
    return np.clip(np.round(grain), 0, GRAINS - 1).astype(np.uint8)


def color_ground(canvas: GroundCanvas, grain: np.ndarray, colors: np.ndarray) -> GroundLevel:
    """Colour an index image; colors [256, 3] uint8 by (material + shadow) * GRAINS + grain."""
    height, width = canvas.index.shape
    image = np.empty((height, width, 3), np.uint8)
    across = np.tile(grain, (1, -(-width // grain.shape[1])))[:, :width]
    for top in range(0, height, len(grain)):  # in strips, which saves memory
        index = canvas.index[top : top + len(grain)] * np.uint8(GRAINS)
        index += across[: len(index)]
        image[top : top + len(index)] = cv2.LUT(cv2.merge([index] * 3), colors.reshape(1, 256, 3))
    return GroundLevel(image, canvas.x0, canvas.y0, canvas.resolution)


def half_size(level: GroundLevel) -> GroundLevel:
    """The next coarser level: each pixel the mean of 2 x 2."""
    height, width = (side // 2 * 2 for side in level.image.shape[:2])
    image = cv2.resize(level.image[:height, :width], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    shift = level.resolution / 2
    return GroundLevel(image, level.x0 + shift, level.y0 + shift, level.resolution * 2)


def pyramid(level: GroundLevel, num_levels: int) -> list[GroundLevel]:
    """`level` and its coarser versions."""
    levels = [level]
    while len(levels) < num_levels:
        levels.append(half_size(levels[-1]))
    return levels
