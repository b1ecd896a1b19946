"""The map expansion (version 1.3) of one city: all its towns as nuScenes map records."""

import numpy as np
from shapely.geometry.base import BaseGeometry

from data.synthetic.elements import Lane, PaintedLine, StopLine, Surface, Town, rounded
from data.synthetic.seeding import make_uuid

SEGMENT_TYPES = {
    ("solid", "white"): "SINGLE_SOLID_WHITE",
    ("solid", "yellow"): "SINGLE_SOLID_YELLOW",
    ("dashed", "white"): "DOUBLE_DASHED_WHITE",
    ("double", "white"): "DOUBLE_SOLID_WHITE",
}
LAYERS = (
    "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway",
    "stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector",
)  # fmt: skip
STRAIGHT_RADIUS = 999.999  # metres: radius that nuScenes gives to straight pieces


class MapWriter:
    """Collects the records of one city. Equal coordinates share one node."""

    def __init__(self, seed: int, location: str, canvas_edge: tuple[float, float]):
        self.seed = seed
        self.location = location
        self.canvas_edge = canvas_edge
        self.layers: dict[str, list[dict]] = {name: [] for name in LAYERS}
        self.connectivity: dict[str, dict] = {}
        self.arcline_paths: dict[str, list[dict]] = {}
        self._nodes: dict[tuple[float, float], str] = {}

    def as_json(self) -> dict:
        """The whole file."""
        return {
            "version": "1.3",
            **self.layers,
            "connectivity": self.connectivity,
            "arcline_path_3": self.arcline_paths,
            "canvas_edge": list(self.canvas_edge),
        }

    def _add(self, layer: str, **fields: object) -> str:
        token = make_uuid(self.seed, "map", self.location, layer, len(self.layers[layer]))
        self.layers[layer].append({"token": token, **fields})
        return token

    def node(self, x: float, y: float) -> str:
        """Token of the node at (x, y)."""
        at = (float(x), float(y))
        if at not in self._nodes:
            self._nodes[at] = self._add("node", x=at[0], y=at[1])
        return self._nodes[at]

    def nodes(self, pts: np.ndarray) -> list[str]:
        """Tokens of the nodes at points [N, 2]."""
        return [self.node(x, y) for x, y in pts]

    def line(self, pts: np.ndarray) -> str:
        """Token of a line record."""
        return self._add("line", node_tokens=self.nodes(pts))

    def polygon(self, exterior: np.ndarray, holes: list[np.ndarray]) -> str:
        """Token of a polygon record."""
        hole_nodes = [{"node_tokens": self.nodes(hole)} for hole in holes]
        return self._add("polygon", exterior_node_tokens=self.nodes(exterior), holes=hole_nodes)

    def surface(self, surface: Surface) -> str:
        """Token of the polygon of a surface."""
        return self.polygon(surface.exterior, surface.holes)

    def polygons(self, geometry: BaseGeometry) -> list[str]:
        """Tokens of the polygons of a shapely geometry."""
        parts = [part for part in getattr(geometry, "geoms", [geometry]) if not part.is_empty]
        return [
            self.polygon(rounded(part.exterior.coords)[:-1], [rounded(ring.coords)[:-1] for ring in part.interiors])
            for part in parts
        ]

    def add_town(self, town: Town) -> None:
        """Add all records of one town."""
        drivable = self._add("drivable_area", polygon_tokens=self.polygons(town.drivable))
        segment_of_road: dict[int, str] = {}
        for segment in town.segments:
            token = self._add(
                "road_segment", polygon_token=self.surface(segment), is_intersection=segment.is_intersection,
                drivable_area_token=drivable,
            )  # fmt: skip
            segment_of_road.setdefault(segment.road, token)
        block_of_road: dict[int, str] = {}
        for block in town.blocks:
            token = self._add(
                "road_block", polygon_token=self.surface(block), from_edge_line_token=self.line(block.from_edge),
                to_edge_line_token=self.line(block.to_edge), road_segment_token=segment_of_road[block.road],
            )  # fmt: skip
            block_of_road.setdefault(block.road, token)
        self._add_lanes(town)
        crossings = [
            self._add("ped_crossing", polygon_token=self.surface(c), road_segment_token=segment_of_road[c.road])
            for c in town.crossings
        ]
        for token in self.polygons(town.walkway):
            self._add("walkway", polygon_token=token)
        for stop_line in town.stop_lines:
            self._add_stop_line(stop_line, crossings, block_of_road[stop_line.road])
        for line in town.lines:
            if line.kind == "road_divider":
                road_segment = segment_of_road[line.road]
                self._add("road_divider", line_token=self.line(line.pts), road_segment_token=road_segment)
            elif line.kind == "lane_divider":
                segments = self._divider_segments(line)
                self._add("lane_divider", line_token=self.line(line.pts), lane_divider_segments=segments)

    def _add_stop_line(self, stop_line: StopLine, crossings: list[str], road_block: str) -> None:
        self._add(
            "stop_line", polygon_token=self.surface(stop_line), stop_line_type="PED_CROSSING",
            ped_crossing_tokens=[crossings[stop_line.crossing]], traffic_light_tokens=[], road_block_token=road_block,
        )  # fmt: skip

    def _divider_segments(self, line: PaintedLine) -> list[dict]:
        """The type of each piece, named at the node where the piece begins; the last node has none."""
        kind = SEGMENT_TYPES.get((line.pattern, line.color), "DOUBLE_SOLID_WHITE")
        tokens = self.nodes(line.pts)
        kinds = [kind] * (len(tokens) - 1) + ["NIL"]
        return [{"node_token": token, "segment_type": kind} for token, kind in zip(tokens, kinds, strict=True)]

    def _add_lanes(self, town: Town) -> None:
        tokens = []
        for lane in town.lanes:
            sides = [
                self._divider_segments(town.lines[index]) if index >= 0 else []
                for index in (lane.left_divider, lane.right_divider)
            ]
            token = self._add(
                "lane", polygon_token=self.surface(lane), lane_type="CAR",
                from_edge_line_token=self.line(lane.from_edge), to_edge_line_token=self.line(lane.to_edge),
                left_lane_divider_segments=sides[0], right_lane_divider_segments=sides[1],
            )  # fmt: skip
            tokens.append(token)
            self._register_path(token, lane)
        for connector in town.connectors:
            token = self._add("lane_connector", polygon_token=self.surface(connector))
            self.connectivity[token] = {
                "incoming": [tokens[connector.lane_from]],
                "outgoing": [tokens[connector.lane_to]],
            }
            self.connectivity[tokens[connector.lane_from]]["outgoing"].append(token)
            self.connectivity[tokens[connector.lane_to]]["incoming"].append(token)
            self.arcline_paths[token] = arcline_path(connector.center[::4])

    def _register_path(self, token: str, lane: Lane) -> None:
        self.connectivity[token] = {"incoming": [], "outgoing": []}
        self.arcline_paths[token] = arcline_path(lane.center)


def arcline_path(pts: np.ndarray) -> list[dict]:
    """A polyline [N, 2] as nuScenes arcline pieces, each of them straight."""
    pieces = []
    for (x0, y0), (x1, y1) in zip(pts[:-1], pts[1:], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        if length < 1e-3:
            continue
        yaw = round(float(np.arctan2(y1 - y0, x1 - x0)), 5)
        pieces.append(
            {
                "start_pose": [round(float(x0), 3), round(float(y0), 3), yaw],
                "end_pose": [round(float(x1), 3), round(float(y1), 3), yaw],
                "shape": "LSR",
                "radius": STRAIGHT_RADIUS,
                "segment_length": [0.0, round(length, 3), 0.0],
            }
        )
    return pieces
