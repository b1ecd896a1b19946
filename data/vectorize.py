"""nuScenes map expansion to the polylines around one key frame, as MapTR makes them (needs shapely).

MapTR (Liao et al., ICLR 2023) takes a patch of the map centred on the LiDAR and turned by its yaw:
divider       road_divider, then lane_divider lines cut by the patch, one instance for every piece
ped_crossing  rings, outer and inner, of the union of the crossings in the patch
boundary      rings of union(union(road_segment), union(lane)) in the patch, cut again by the patch shrunk by
              0.2 m so that no edge of the patch remains; outer rings clockwise, inner counter-clockwise
"""

import json
from pathlib import Path

import numpy as np
import shapely

from data.geometry import yaw_of
from utils.errors import UserError
from utils.frame import CLASSES

# Metres by which the patch grows (+) or shrinks (-) before it cuts the rings of a class.
PATCH_MARGINS = {"ped_crossing": 0.2, "boundary": -0.2}
LINE_LAYERS = ("road_divider", "lane_divider")
POLYGON_LAYERS = ("ped_crossing", "road_segment", "lane")
_OLDEST_MAP_VERSION = (1, 3)


class MapVectorizer:
    """The map of one city, indexed; `vectorize` gives the polylines around a pose."""

    def __init__(self, dataroot: str | Path, location: str, pc_range: tuple[float, ...]):
        """Read <dataroot>/maps/expansion/<location>.json.

        Raises UserError when it is missing, older than 1.3, or lacks a layer.
        """
        path = map_expansion_path(dataroot, location)
        tables = _read_map(path)
        try:
            nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
            geometries, self.invalid_tokens = _read_layers(tables, nodes)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: a record refers to {error}, which is not there; unpack the map expansion again"
            ) from error
        # One tree a layer over the whole city, so that a sample's cost does not grow with the city.
        self._layers = {name: shapely.STRtree(found) for name, found in geometries.items()}
        x_min, y_min, _, x_max, y_max, _ = pc_range
        self._patch = shapely.box(x_min, y_min, x_max, y_max)
        margin = PATCH_MARGINS["boundary"]
        self._inner_patch = shapely.box(x_min - margin, y_min - margin, x_max + margin, y_max + margin)

    def vectorize(self, lidar2global: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels [G] int64 and polylines [n, 2] float32, metres in the LiDAR frame of lidar2global [4, 4].

        Only the yaw, x and y of the pose are used. Instances come in the order of the classes; the same pose
        gives the same bytes.
        """
        yaw = yaw_of(lidar2global)
        rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])  # local to global
        origin = lidar2global[:2, 3]
        patch = shapely.transform(self._patch, lambda pts: pts @ rotation.T + origin)

        def inside(layer: str) -> np.ndarray:
            tree = self._layers[layer]
            found = tree.geometries[np.sort(tree.query(patch, predicate="intersects"))]
            return shapely.transform(_cut(found, patch), lambda pts: (pts - origin) @ rotation)

        dividers = [_line_parts(inside(layer)) for layer in LINE_LAYERS]
        # No ring of a crossing reaches the grown patch: the crossings were cut by the patch itself.
        crossings = _rings(shapely.union_all(_polygon_parts(inside("ped_crossing"))))
        roads = [shapely.union_all(_polygon_parts(inside(layer))) for layer in ("road_segment", "lane")]
        boundaries = _merged(shapely.intersection(_rings(shapely.union_all(roads)), self._inner_patch))
        by_class = {"divider": np.concatenate(dividers), "ped_crossing": crossings, "boundary": boundaries}
        labels = np.repeat(np.arange(len(CLASSES)), [len(by_class[name]) for name in CLASSES])
        lines = np.concatenate([by_class[name] for name in CLASSES])
        pts, of_line = shapely.get_coordinates(lines, return_index=True)
        bounds = np.searchsorted(of_line, np.arange(1, len(lines)))
        pts_m = np.split(pts.astype(np.float32), bounds) if len(lines) else []
        return labels.astype(np.int64), pts_m


def map_expansion_path(dataroot: str | Path, location: str) -> Path:
    """Where nuScenes keeps the vector map of a city."""
    return Path(dataroot) / "maps" / "expansion" / f"{location}.json"


def _read_map(path: Path) -> dict:
    """The map's tables, checked for presence and version. Raises UserError."""
    fix = "unpack nuScenes-map-expansion-v1.3.zip into the dataroot's maps folder"
    if not path.is_file():
        raise UserError(f"{path}: no such map expansion; {fix}")
    try:
        tables = json.loads(path.read_bytes())
        version = str(tables.get("version", "1.0"))
        outdated = tuple(int(part) for part in version.split(".")) < _OLDEST_MAP_VERSION
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a map expansion ({error}); {fix}") from error
    if outdated:
        raise UserError(f"{path}: map expansion version {version}, expected 1.3 or later; {fix}")
    needed = (*LINE_LAYERS, *POLYGON_LAYERS, "node", "line", "polygon")
    missing = [name for name in needed if name not in tables]
    if missing:
        raise UserError(f"{path}: layer {missing[0]} is missing, expected {', '.join(needed)}; {fix}")
    return tables


def _read_layers(tables: dict, nodes: dict) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Geometries of each layer in global metres, and the tokens of the invalid ones, which are left out.

    A line without two nodes, a polygon without three and a hole without three are left out silently: nuScenes
    has them as placeholders.
    """
    lines = {record["token"]: record["node_tokens"] for record in tables["line"]}
    polygons = {record["token"]: record for record in tables["polygon"]}
    geometries, invalid = {}, {}

    def points(tokens: list[str]) -> list[tuple[float, float]]:
        return [nodes[token] for token in tokens]

    for layer in LINE_LAYERS:
        used = [points(lines[record["line_token"]]) for record in tables[layer]]
        geometries[layer] = np.array([shapely.LineString(pts) for pts in used if len(pts) >= 2], object)
    for layer in POLYGON_LAYERS:
        found, tokens = [], []
        for record in tables[layer]:
            polygon = polygons[record["polygon_token"]]
            exterior = points(polygon["exterior_node_tokens"])
            holes = [points(hole["node_tokens"]) for hole in polygon["holes"]]
            if len(exterior) >= 3:
                found.append(shapely.Polygon(exterior, [hole for hole in holes if len(hole) >= 3]))
                tokens.append(record["token"])
        found = np.array(found, object)
        # MapTR leaves self-crossing polygons out rather than mend them, so its numbers depend on that.
        valid = shapely.is_valid(found)
        geometries[layer] = found[valid]
        invalid[layer] = [token for token, ok in zip(tokens, valid, strict=True) if not ok]
    return geometries, invalid


def _cut(geometries: np.ndarray, patch: shapely.Polygon) -> np.ndarray:
    """Geometries cut by a polygon; areas wholly inside are passed on as they are.

    Lines are cut even then, because that parts a line where it crosses itself, as it does for MapTR.
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
    exterior = shapely.get_exterior_ring(polygons)
    holes = shapely.get_num_interior_rings(polygons)
    of_hole = np.repeat(np.arange(len(polygons)), holes)
    number = np.concatenate([*(np.arange(count) for count in holes), np.zeros(0, np.int64)])
    interior = shapely.get_interior_ring(polygons[of_hole], number)
    exterior = np.where(shapely.is_ccw(exterior), shapely.reverse(exterior), exterior)
    interior = np.where(shapely.is_ccw(interior), interior, shapely.reverse(interior))
    return np.concatenate([exterior, interior])


def _merged(cut_rings: np.ndarray) -> np.ndarray:
    """Lines of rings that a patch has cut, the two pieces around a ring's start joined again."""
    several = shapely.get_num_geometries(cut_rings) > 1  # lines, perhaps with points of touch
    merged = cut_rings.copy()
    merged[several] = shapely.line_merge(cut_rings[several])
    return _line_parts(merged)
