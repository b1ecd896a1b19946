"""Polylines around one key frame, out of a city's map, as two published systems make them (needs shapely).

Both cut a patch of pc_range's size out of the map. divider: road_divider and lane_divider lines, one instance for
every piece. boundary: rings of union(union(road_segment), union(lane)) in the patch, cut again by the patch shrunk
by 0.2 m so that no edge of the patch remains; outer rings clockwise, inner counter-clockwise. Loops without width,
which rounding leaves where polygons abut, are left out (the published code keeps its own, each time others). The
styles differ in

                maptr (MapTR, Liao et al., ICLR 2023)   streammapnet (StreamMapNet, Yuan et al., WACV 2024)
    patch       centred on the LiDAR, turned by its     centred on the ego origin, turned by its yaw;
                yaw; x right, y forward                 x forward, y left
    ped_crossing  rings, outer and inner, of the union  outer rings, counter-clockwise; a crossing unites with
                of all crossings                        those whose boxes touch it and that are nearly parallel

In points and at edges the outcome hangs on the last bit of a coordinate, so the arithmetic is that of the published
code: nuscenes-devkit's NuScenesMapExplorer, which rotates with shapely.affinity.
"""

from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import shapely

from data.geometry import yaw_of
from data.gt_cache import GT_STYLES
from data.map_expansion import LINE_LAYERS, read_layers
from data.polylines import line_length
from data.records import SampleRecord
from utils.frame import CLASSES

# Metres by which the patch shrinks before it cuts the boundaries.
BOUNDARY_MARGIN = 0.2
# Loops whose mean width in metres is smaller, and whose ends lie this near, are left by rounding.
_SLIVER_WIDTH = 0.01
_SLIVER_ENDS = 0.02
# streammapnet: ends of a cut crossing that are nearer in both coordinates, in metres, are one point.
_CLOSED_ENDS = 1e-3
# streammapnet: crossings are nearly parallel when 1 - |cos| between their long sides is smaller (8 degrees).
_PARALLEL = 0.01


def patch_pose(record: SampleRecord, gt_style: str) -> np.ndarray:
    """The pose [4, 4] whose frame a style's patch lies in: lidar2global or ego2global."""
    return record.lidar2global if gt_style == "maptr" else record.ego2global


class MapVectorizer:
    """The map of one city, indexed; `vectorize` gives the polylines around a pose."""

    def __init__(
        self, dataroot: str | Path, location: str, pc_range: tuple[float, ...], gt_style: str = "maptr"
    ):
        """Read <dataroot>/maps/expansion/<location>.json; gt_style is one of GT_STYLES.

        Raises UserError when the map is missing, older than 1.3, or lacks a layer.
        """
        assert gt_style in GT_STYLES
        geometries, self.invalid_tokens = read_layers(dataroot, location)
        # One tree a layer over the whole city, so that a sample's cost does not grow with the city.
        self._layers = {name: shapely.STRtree(found) for name, found in geometries.items()}
        self._gt_style = gt_style
        half = np.array(pc_range[3:5])
        if gt_style == "streammapnet":
            half = half[::-1]  # x is the long side there
        self._half = half
        self._patch = shapely.box(*-half, *half)
        self._inner_patch = shapely.box(*(BOUNDARY_MARGIN - half), *(half - BOUNDARY_MARGIN))

    def vectorize(self, patch2global: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels [G] int64 and polylines [n, 2] float32, metres in the frame of patch2global [4, 4].

        patch2global: see patch_pose; only its yaw, x and y are used. Instances come in the order of the
        classes; the same pose gives the same bytes.
        """
        inside = self._layers_inside(patch2global)
        by_class = {
            "divider": np.concatenate([_line_parts(inside[layer]) for layer in LINE_LAYERS]),
            "ped_crossing": self._crossings(inside["ped_crossing"]),
            "boundary": self._boundaries(inside["road_segment"], inside["lane"]),
        }
        labels = np.repeat(np.arange(len(CLASSES)), [len(by_class[name]) for name in CLASSES])
        lines = np.concatenate([by_class[name] for name in CLASSES])
        pts, of_line = shapely.get_coordinates(lines, return_index=True)
        bounds = np.searchsorted(of_line, np.arange(1, len(lines)))
        pts_m = np.split(pts.astype(np.float32), bounds) if len(lines) else []
        return labels.astype(np.int64), pts_m

    def _layers_inside(self, patch2global: np.ndarray) -> dict[str, np.ndarray]:
        """What the patch cuts out of each layer, in the patch's frame and in the order of the map's records."""
        yaw, origin = float(yaw_of(patch2global)), patch2global[:2, 3]
        patch = shapely.transform(shapely.box(*(origin - self._half), *(origin + self._half)), _rotation(yaw, origin))
        turn_back = _rotation(-yaw, origin)
        inside = {}
        for layer, tree in self._layers.items():
            found = tree.geometries[np.sort(tree.query(patch, predicate="intersects"))]
            inside[layer] = shapely.transform(_cut(found, patch), lambda pts: turn_back(pts) - origin)
        return inside

    def _crossings(self, crossings: np.ndarray) -> np.ndarray:
        """Rings of the crossings in the patch."""
        crossings = _polygon_parts(crossings)
        if self._gt_style == "maptr":
            # MapTR cuts the rings by the patch grown by 0.2 m, which no ring of what the patch cut can reach.
            return _with_width(_rings(shapely.union_all(crossings)))
        united = _polygon_parts(_unite_parallel(crossings))
        rings = shapely.reverse(_clockwise(shapely.get_exterior_ring(united)))
        return _with_width(_closed_by_force(shapely.intersection(rings, self._patch)))

    def _boundaries(self, road_segments: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Outlines of the road in the patch, without the edges that the patch has cut."""
        roads = [shapely.union_all(_polygon_parts(layer)) for layer in (road_segments, lanes)]
        return _with_width(_merged(shapely.intersection(_rings(shapely.union_all(roads)), self._inner_patch)))


def _rotation(angle: float, origin: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Turns points [N, 2] by an angle in radians about an origin [2], rounding as shapely.affinity.rotate does."""
    angle = angle / np.pi * 180 * np.pi / 180.0  # the devkit takes degrees
    cos, sin = (0.0 if abs(value) < 2.5e-16 else value for value in (np.cos(angle), np.sin(angle)))
    x0, y0 = origin
    x_off, y_off = x0 - x0 * cos + y0 * sin, y0 - x0 * sin - y0 * cos
    return lambda pts: np.stack(
        [cos * pts[:, 0] - sin * pts[:, 1] + x_off, sin * pts[:, 0] + cos * pts[:, 1] + y_off], axis=1
    )


def _cut(geometries: np.ndarray, patch: shapely.Polygon) -> np.ndarray:
    """Geometries cut by a polygon; areas wholly inside are passed on as they are.

    Lines are cut even then, because that parts a line where it crosses itself, as it does in the published code.
    """
    shapely.prepare(patch)
    whole = shapely.contains_properly(patch, geometries) & (shapely.get_dimensions(geometries) == 2)
    cut = geometries.copy()
    cut[~whole] = shapely.intersection(geometries[~whole], patch)
    return cut


def _line_parts(geometries: np.ndarray) -> np.ndarray:
    """Every line in an array of any geometries; points of touch and empty ones fall away."""
    parts = shapely.get_parts(geometries)
    lines = parts[shapely.get_dimensions(parts) == 1]
    return lines[shapely.length(lines) > 0]


def _polygon_parts(geometries: np.ndarray) -> np.ndarray:
    """Every polygon in an array of any geometries."""
    parts = shapely.get_parts(geometries)
    return parts[shapely.get_dimensions(parts) == 2]


def _rings(area: shapely.Geometry) -> np.ndarray:
    """Outer rings (clockwise), then inner rings (counter-clockwise) of a polygonal geometry."""
    polygons = _polygon_parts(np.array([area], object))
    holes = shapely.get_num_interior_rings(polygons)
    of_hole = np.repeat(np.arange(len(polygons)), holes)
    number = np.concatenate([*(np.arange(count) for count in holes), np.zeros(0, np.int64)])
    interior = shapely.get_interior_ring(polygons[of_hole], number)
    interior = np.where(shapely.is_ccw(interior), interior, shapely.reverse(interior))
    return np.concatenate([_clockwise(shapely.get_exterior_ring(polygons)), interior])


def _clockwise(rings: np.ndarray) -> np.ndarray:
    """The same rings, each turning clockwise."""
    return np.where(shapely.is_ccw(rings), shapely.reverse(rings), rings)


def _unite_parallel(crossings: np.ndarray) -> np.ndarray:
    """StreamMapNet's union: each crossing not yet taken, in their order, takes all free ones that suit it.

    Suiting ones have a bounding box that touches its own and a long side nearly parallel to its own. What
    they are united with does not grow the box, so that the outcome depends on the order of the records.
    """
    if len(crossings) < 2:
        return crossings
    low, high = np.split(shapely.bounds(crossings), 2, axis=1)  # [N, 2] each
    touching = np.all((low[:, None] <= high[None]) & (low[None] <= high[:, None]), axis=2)  # [N, N]
    direction = _long_sides(crossings)
    suits = touching & (1 - np.abs(direction @ direction.T) < _PARALLEL)
    free = np.ones(len(crossings), bool)
    united = []
    for first in range(len(crossings)):
        if free[first]:
            members = free & suits[first]
            members[first] = True
            free &= ~members
            others = crossings[members & (np.arange(len(crossings)) != first)]
            united.append(reduce(shapely.union, others, crossings[first]))
    return np.array(united, object)


def _long_sides(polygons: np.ndarray) -> np.ndarray:
    """Unit directions [N, 2] of the longer side of each polygon's smallest enclosing rectangle."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(polygons)).reshape(-1, 5, 2)
    sides = corners[:, 1:3] - corners[:, :2]  # [N, 2, 2]
    length = np.linalg.norm(sides, axis=2)
    longest = np.argmax(length, axis=1)[:, None]
    side = np.take_along_axis(sides, longest[..., None], axis=1)[:, 0]
    return side / np.take_along_axis(length, longest, axis=1)


def _closed_by_force(cut_rings: np.ndarray) -> np.ndarray:
    """StreamMapNet's one line of each ring that its patch has cut.

    A ring in one piece stays as it is, even when the cut has opened it. Several pieces, most often around the ring's
    start, are merged, strung together in their order and closed.
    """
    lines = []
    for cut in cut_rings:
        pieces = _line_parts(np.array([cut], object))
        if shapely.get_num_geometries(cut) > 1 and len(pieces):
            merged = shapely.get_parts(shapely.line_merge(shapely.multilinestrings(pieces)))
            pts = shapely.get_coordinates(merged)
            if np.allclose(pts[0], pts[-1], atol=_CLOSED_ENDS):
                pts[-1] = pts[0]  # the published code leaves the gap, in which a ring would not be known as one
            else:
                pts = np.concatenate([pts, pts[:1]])
            pieces = [shapely.linestrings(pts)]
        lines += list(pieces)
    return np.array(lines, object)


def _with_width(lines: np.ndarray) -> np.ndarray:
    """The lines that are not slivers."""
    return lines[[not _is_sliver(shapely.get_coordinates(line)) for line in lines]]


def _is_sliver(pts: np.ndarray) -> bool:
    """Whether a line [n, 2] is a loop without width, metres."""
    if np.linalg.norm(pts[0] - pts[-1]) > _SLIVER_ENDS:
        return False
    x, y = (pts - pts[0]).T
    twice_area = abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])))
    return twice_area < _SLIVER_WIDTH * line_length(pts)


def _merged(cut_rings: np.ndarray) -> np.ndarray:
    """Lines of rings that a patch has cut, the two pieces around a ring's start joined again."""
    several = shapely.get_num_geometries(cut_rings) > 1  # lines, perhaps with points of touch
    merged = cut_rings.copy()
    merged[several] = shapely.line_merge(cut_rings[several])
    return _line_parts(merged)
