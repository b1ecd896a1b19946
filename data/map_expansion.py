"""The nuScenes map expansion of one city as Shapely geometries, layer by layer (needs shapely)."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely

from data.checked_records import Records, read_json
from utils.errors import UserError

LINE_LAYERS = ("road_divider", "lane_divider")
POLYGON_LAYERS = ("ped_crossing", "road_segment", "lane")
_NEEDED = (*LINE_LAYERS, *POLYGON_LAYERS, "node", "line", "polygon")
_OLDEST_MAP_VERSION = (1, 3)
_FIX = "unpack nuScenes-map-expansion-v1.3.zip into the dataroot's maps folder"


def map_expansion_path(dataroot: str | Path, location: str) -> Path:
    """Where nuScenes keeps the vector map of a city."""
    return Path(dataroot) / "maps" / "expansion" / f"{location}.json"


def read_map_tables(dataroot: str | Path, location: str) -> dict:
    """The tables of a city's map file. Raises UserError when it is missing, older than 1.3 or lacks a layer."""
    path = map_expansion_path(dataroot, location)
    with contextlib.suppress(PermissionError):  # which reading reports
        if not path.exists():
            there = sorted(found.stem for found in path.parent.glob("*.json") if found.is_file())
            elsewhere = sorted(found for found in (Path(dataroot) / "maps").rglob(path.name) if found.is_file())
            fix = f"move {elsewhere[0].parent}/*.json into {path.parent}" if elsewhere else _FIX
            raise UserError(f"{path}: no such map expansion, cities there: {', '.join(there) or 'none'}; {fix}")
    tables = read_json(path, "map expansion", _FIX)
    try:
        version = str(tables.get("version", "1.0"))
        outdated = tuple(int(part) for part in version.split(".")) < _OLDEST_MAP_VERSION
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a map expansion ({error}); {_FIX}") from error
    if outdated:
        raise UserError(f"{path}: map expansion version {version}, expected 1.3 or later; {_FIX}")
    missing = [name for name in _NEEDED if name not in tables]
    if missing:
        raise UserError(f"{path}: layer {missing[0]} is missing, expected {', '.join(_NEEDED)}; {_FIX}")
    return tables


def read_layers(dataroot: str | Path, location: str) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Geometries of each layer in global metres, and the tokens of the invalid ones, which are left out.

    A line without two nodes, a polygon without three and a hole without three are left out silently: nuScenes
    has them as placeholders. Raises UserError as read_map_tables, and for the first record that is malformed
    or refers to one that is not there. Like the devkit, this looks at no more than the token of a line or polygon that
    none of these layers refers to, and that may be null: road blocks of Queenstown and Holland Village refer to null
    (nuscenes-devkit issues 810 and 1183), and the devkit, which follows them, finds a polygon there.
    """
    tables = read_map_tables(dataroot, location)
    path = map_expansion_path(dataroot, location)
    layers = {name: Records(tables[name], f"{path}: {name}", _FIX) for name in (*LINE_LAYERS, *POLYGON_LAYERS, "node")}
    shapes = {name: Records(tables[name], f"{path}: {name}", _FIX, null_token=True) for name in ("line", "polygon")}
    nodes = layers["node"]
    xy = np.stack([nodes.numbers("x"), nodes.numbers("y")], axis=-1)  # [N, 2]
    row_of = {token: row for row, token in enumerate(nodes.tokens)}
    geometries, invalid = {}, {}
    for layer in LINE_LAYERS:
        lines = shapes["line"].those_of(layers[layer], "line_token", "line")
        rows_of_lines = lines.follow_lists("node_tokens", row_of, "node")
        points, of_line = _gathered(xy, [rows for rows in rows_of_lines if len(rows) >= 2])
        geometries[layer] = shapely.linestrings(points, indices=of_line)
    for layer in POLYGON_LAYERS:
        rings = _rows_of_rings(shapes["polygon"].those_of(layers[layer], "polygon_token", "polygon"), row_of, path)
        there = [len(exterior) >= 3 for exterior, *_ in rings]
        found = _polygons(xy, [rows for rows, ok in zip(rings, there, strict=True) if ok])
        tokens = [token for token, ok in zip(layers[layer].tokens, there, strict=True) if ok]
        # The published code leaves self-crossing polygons out rather than mend them, so its numbers depend on it.
        valid = shapely.is_valid(found)
        geometries[layer] = found[valid]
        invalid[layer] = [token for token, ok in zip(tokens, valid, strict=True) if not ok]
    return geometries, invalid


def _rows_of_rings(polygons: Records, row_of: Mapping[str, int], path: Path) -> list[list[list[int]]]:
    """Of each polygon, rows of the nodes of its exterior and then of each hole."""
    rings = [[exterior] for exterior in polygons.follow_lists("exterior_node_tokens", row_of, "node")]
    holes = [(index, hole if isinstance(hole, dict) else {})
             for index, own in enumerate(polygons.values("holes", list)) for hole in own]  # fmt: skip
    records = [{"token": polygons.tokens[index], "node_tokens": hole.get("node_tokens")} for index, hole in holes]
    checked = Records(records, f"{path}: polygon hole", _FIX, null_token=True)
    for (index, _), rows in zip(holes, checked.follow_lists("node_tokens", row_of, "node"), strict=True):
        rings[index].append(rows)
    return rings


def _polygons(xy: np.ndarray, used: Sequence[list[list[int]]]) -> np.ndarray:
    """Polygons of the rows of xy in their exterior and then their holes."""
    rings = [(index, rows) for index, polygon in enumerate(used) for rows in polygon if len(rows) >= 3]
    points, of_ring = _gathered(xy, [rows for _, rows in rings])
    of_polygon = np.array([index for index, _ in rings], np.int64)
    return shapely.polygons(shapely.linearrings(points, indices=of_ring), indices=of_polygon)


def _gathered(xy: np.ndarray, rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Points [K, 2] of all rows and the place [K] in `rows` of each, as Shapely's constructors take them."""
    owner = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    return xy[np.array([row for own in rows for row in own], np.int64)], owner
