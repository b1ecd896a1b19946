"""Build one town from the seed: streets, paint and what stands beside them."""

import numpy as np
import shapely
from shapely.geometry import Polygon

from data.synthetic.cross_section import make_cross_section
from data.synthetic.curves import Curve, round_corners
from data.synthetic.elements import Lane, PaintedLine, Town, TownStyle
from data.synthetic.junction import arms_of, cut_distances, junction_segment, make_connectors
from data.synthetic.layout import Network, make_network
from data.synthetic.props import place_props
from data.synthetic.road import Road, RoadParts, furnish_road
from data.synthetic.seeding import make_rng

TOWN_SIZE = 560.0  # metres: a town lies within a square of this size
STRAIGHT_ENDS = 27.0  # metres of road before a junction that stay straight
MIN_ROAD = 24.0  # metres of road that must be left between two junctions
MAX_OVERLAP = 0.5  # square metres: road segments abut, they do not lie on one another
MAX_ATTEMPTS = 200


def build_town(seed: int, key: str, location: str, center: tuple[float, float]) -> Town:
    """A town around `center` (global metres). Same seed and key, same town."""
    for attempt in range(MAX_ATTEMPTS):
        rng = make_rng(seed, "town", key, attempt)
        style = _make_style(rng, 1 if location.startswith("boston") else -1)
        network = make_network(rng, np.asarray(center, np.float64))
        roads = _cut_roads(rng, network, style)
        town = roads and _assemble(rng, key, location, style, roads, len(network.junctions))
        if town:
            return town
    raise RuntimeError(f"town {key}: no valid streets in {MAX_ATTEMPTS} attempts")


def _make_style(rng: np.random.Generator, hand: int) -> TownStyle:
    dashes = [(3.0, 9.0), (3.0, 4.5), (2.0, 4.0), (4.0, 4.0)]
    yellow = rng.random() < (0.85 if hand == 1 else 0.15)
    return TownStyle(
        hand=hand,
        lane_width=float(rng.uniform(3.0, 3.6)),
        corner_radius=float(rng.uniform(4.0, 8.0)),
        walkway_width=float(rng.choice([0.0, 1.8, 2.5, 4.0])),
        median_share=float(rng.uniform(0.2, 0.8)),
        crossing_share=float(rng.uniform(0.45, 0.9)),
        building_share=float(rng.uniform(0.25, 0.9)),
        tree_share=float(rng.uniform(0.1, 0.8)),
        center_color="yellow" if yellow else "white",
        dash=dashes[int(rng.integers(len(dashes)))],
        crossing_style=str(rng.choice(["zebra", "ladder"])),
        wear=float(rng.uniform(0.0, 0.35)),
    )


def _cut_roads(rng: np.random.Generator, network: Network, style: TownStyle) -> list[Road] | None:
    """Roads with their cross-sections, cut at the junctions; None if one is too short or too sharply bent."""
    roads = []
    one_way_at: set[int] = set()
    for index, (start, end, control) in enumerate(network.roads):
        one_way = rng.random() < 0.15 and not {start, end} & one_way_at
        if one_way:
            one_way_at |= {start, end}
        section = make_cross_section(rng, style, one_way)
        roads.append(Road(index, Curve(round_corners(control, STRAIGHT_ENDS)), section, start, end))
    for junction in range(len(network.junctions)):
        arms = arms_of(roads, junction)
        for (road, starts), distance in zip(arms, cut_distances(arms, style.corner_radius), strict=True):
            if starts:
                road.start = round(distance, 3)
            else:
                road.end = round(road.curve.length - distance, 3)
    for road in roads:
        sharp = road.curve.smallest_radius() < road.section.half_width + 4.0
        if sharp or road.end - road.start < MIN_ROAD:
            return None
    return roads


def _assemble(
    rng: np.random.Generator, key: str, location: str, style: TownStyle, roads: list[Road], num_junctions: int
) -> Town | None:
    """The town on these roads; None if its polygons cross themselves or each other."""
    parts = RoadParts()
    for road in roads:
        added = furnish_road(rng, road, style)
        for stop_line in added.stop_lines:
            stop_line.crossing += len(parts.crossings)
        for name in vars(parts):
            getattr(parts, name).extend(getattr(added, name))
    connectors = []
    for junction in range(num_junctions):
        parts.segments.append(junction_segment(arms_of(roads, junction)))
        connectors += make_connectors(parts.lanes, junction, style.hand)
    for lane in parts.lanes:
        _find_dividers(lane, parts.lines, style.hand)
    polygons = [Polygon(surface.exterior, surface.holes) for surface in (*parts.segments, *parts.lanes)]
    if not shapely.is_valid(polygons).all():
        return None
    polygons = polygons[: len(parts.segments)]
    drivable = shapely.union_all(polygons)
    if drivable.geom_type != "Polygon" or shapely.area(polygons).sum() - drivable.area > MAX_OVERLAP:
        return None
    paved = drivable.union(shapely.union_all([road.full_outline() for road in roads]))  # medians filled
    walkway = paved.buffer(style.walkway_width, quad_segs=3).difference(paved) if style.walkway_width else Polygon()
    boxes, trees = place_props(rng, style, roads, paved)
    return Town(
        key, location, style, parts.segments, parts.lanes, parts.blocks, connectors, parts.crossings,
        parts.stop_lines, parts.lines, parts.patches, drivable, walkway, boxes, trees,
    )  # fmt: skip


def _find_dividers(lane: Lane, lines: list[PaintedLine], hand: int) -> None:
    """Name a painted divider on either side of a lane, if there is one."""
    found = [-1, -1]  # towards the centre of the road, towards the kerb
    for index, line in enumerate(lines):
        if line.road == lane.road and line.kind != "edge":
            for side in (0, 1):
                if abs(line.d - lane.edges[side]) < 1e-6:
                    found[side] = index
    lane.left_divider, lane.right_divider = found[::hand]
