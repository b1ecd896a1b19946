"""Buildings, hedges, poles and trees beside the roads. None stands on the road or its walkway."""

import numpy as np
import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from data.synthetic.elements import Box, TownStyle, Tree, oriented_rectangle
from data.synthetic.road import Road

WALLS = [
    (168, 120, 96),
    (196, 186, 170),
    (150, 150, 155),
    (205, 195, 150),
    (120, 100, 92),
    (178, 188, 196),
    (225, 222, 214),
]
LEAVES = [(62, 96, 44), (80, 112, 52), (50, 82, 50), (98, 110, 50)]
CLEAR_AT_JUNCTION = 3.0  # metres along the road left free of hedges at its ends


def place_props(
    rng: np.random.Generator, style: TownStyle, roads: list[Road], paved: BaseGeometry
) -> tuple[list[Box], list[Tree]]:
    """Boxes and trees beside the roads; `paved` is what they keep clear of, grown by the walkway."""
    clear_of = paved.buffer(style.walkway_width + 0.6, quad_segs=2)
    shapely.prepare(clear_of)
    boxes, trees = [], []
    footprints: list[Polygon] = []
    for road in roads:
        for side in (-1, 1):
            edge = road.section.half_width + style.walkway_width
            _place_buildings(rng, style, road, side, edge, clear_of, boxes, footprints)
            _place_small_things(rng, style, road, side, edge, clear_of, boxes, trees)
    return boxes, trees


def _place_buildings(rng, style, road, side, edge, clear_of, boxes, footprints) -> None:
    s = road.start - 8.0
    while s < road.end + 4:
        length, depth = float(rng.uniform(9, 26)), float(rng.uniform(8, 15))
        set_back = float(rng.uniform(1.5, 9.0))
        wanted = rng.random() < style.building_share
        height = float(rng.choice([rng.uniform(3.5, 8), rng.uniform(8, 16), rng.uniform(16, 40)], p=[0.45, 0.4, 0.15]))
        color, look = WALLS[int(rng.integers(len(WALLS)))], int(rng.integers(1 << 16))
        x, y, yaw = _beside(road, s + length / 2, side * (edge + set_back + depth / 2))
        s += length + float(rng.uniform(1, 9))
        if not wanted:
            continue
        footprint = Polygon(oriented_rectangle(x, y, yaw, length, depth))
        if clear_of.intersects(footprint) or any(footprint.intersects(other) for other in footprints):
            continue
        footprints.append(footprint)
        boxes.append(Box("building", x, y, yaw, (length, depth, height), color, look))


def _place_small_things(rng, style, road, side, edge, clear_of, boxes, trees) -> None:
    s = road.start + CLEAR_AT_JUNCTION + float(rng.uniform(0, 8))
    lamp_gap = float(rng.uniform(22, 35))
    last_lamp = -1e9
    while s < road.end - CLEAR_AT_JUNCTION:
        kind = rng.random()
        x, y, yaw = _beside(road, s, side * (edge + 1.1))
        length = 0.2
        if s - last_lamp > lamp_gap:
            boxes.append(Box("pole", x, y, yaw, (0.18, 0.18, 7.0), (120, 122, 125), 0))
            last_lamp = s
        elif kind < style.tree_share:
            radius = float(rng.uniform(1.0, 2.3))
            color = LEAVES[int(rng.integers(len(LEAVES)))]
            x, y, _ = _beside(road, s, side * (edge + 1.0 + radius * 0.4))
            if not clear_of.contains(shapely.Point(x, y)):
                trees.append(Tree(x, y, float(rng.uniform(3.6, 5.5)), radius, color))
        elif kind > 0.9:
            length = float(rng.uniform(3, 9))
            footprint = Polygon(oriented_rectangle(x, y, yaw, length, 0.8))
            if not clear_of.intersects(footprint):
                color = LEAVES[int(rng.integers(len(LEAVES)))]
                boxes.append(Box("hedge", x, y, yaw, (length, 0.8, float(rng.uniform(0.6, 1.3))), color, 0))
        s += length + float(rng.uniform(3, 11))


def _beside(road: Road, s: float, d: float) -> tuple[float, float, float]:
    """Position and yaw beside a road."""
    s = float(np.clip(s, 0.0, road.curve.length))
    xy = road.curve.at(s, d)
    return float(xy[0]), float(xy[1]), float(np.interp(s, road.curve.arc, road.curve.heading))
