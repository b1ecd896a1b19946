"""The nuScenes map expansion of one city as Shapely geometries, layer by layer (needs shapely)."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import shapely

from utils.errors import UserError

LINE_LAYERS = ("road_divider", "lane_divider")
POLYGON_LAYERS = ("ped_crossing", "road_segment", "lane")
_OLDEST_MAP_VERSION = (1, 3)


def map_expansion_path(dataroot: str | Path, location: str) -> Path:
    """Where nuScenes keeps the vector map of a city."""
    return Path(dataroot) / "maps" / "expansion" / f"{location}.json"


def read_map_tables(dataroot: str | Path, location: str) -> dict:
    """The tables of a city's map file. Raises UserError when it is missing, older than 1.3 or lacks a layer."""
    path = map_expansion_path(dataroot, location)
    fix = "unpack nuScenes-map-expansion-v1.3.zip into the dataroot's maps folder"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob("*.json"))) or "none"
        raise UserError(f"{path}: no such map expansion, cities there: {there}; {fix}")
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


def read_layers(
    dataroot: str | Path, location: str
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Geometries of each layer in global metres, and the tokens of the invalid ones, which are left out.

    A line without two nodes, a polygon without three and a hole without three are left out silently: nuScenes
    has them as placeholders. Raises UserError as read_map_tables, and for a reference to a missing record.
    """
    tables = read_map_tables(dataroot, location)
    try:
        return layers_of(tables)
    except (KeyError, TypeError) as error:
        path = map_expansion_path(dataroot, location)
        raise UserError(
            f"{path}: a record refers to {error}, which is not there; unpack the map expansion again"
        ) from error


def layers_of(tables: Mapping) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """As read_layers, from the tables. Raises KeyError or TypeError for a broken reference."""
    nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
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
        # The published code leaves self-crossing polygons out rather than mend them, so its numbers depend on it.
        valid = shapely.is_valid(found)
        geometries[layer] = found[valid]
        invalid[layer] = [token for token, ok in zip(tokens, valid, strict=True) if not ok]
    return geometries, invalid
